#include <ebbtide/store/op_name.h>
#include <ebbtide/store/pass_log.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <bit>
#include <map>
#include <optional>
#include <unordered_map>
#include <utility>

namespace ebbtide {
namespace {

/// The power of two and the three bits below it.
uint64_t size_class(Bytes bytes) noexcept {
  const auto n = static_cast<uint64_t>(bytes.count());
  const int above = std::max(0, static_cast<int>(std::bit_width(n)) - 4);
  return n >> above << above;
}

uint64_t extended(uint64_t prefix, const PassLog::Packed& packed) noexcept {
  const uint64_t facts[] = {prefix, packed.device, packed.dtype, size_class(packed.bytes)};
  return XXH3_64bits(facts, sizeof facts);
}

}  // namespace

void PassLog::clear() noexcept {
  made_.clear();
  inputs_.clear();
  steps_.clear();
  paused_ = latest_ = seconds_ = 0;
  prefix_ = 0;
  has_backward_ = false;
}

uint32_t PassLog::pack(const Packed& packed, Time now) {
  if (made_.empty()) begin_ = now;
  const auto index = static_cast<uint32_t>(made_.size());
  made_.push_back({packed});
  prefix_ = extended(prefix_, packed);
  step(ProfiledStep::What::kPack, index, now);
  return index;
}

void PassLog::set_recipe(uint32_t index, double seconds, std::span<const uint32_t> inputs, uint64_t group) {
  Made& made = made_[index];
  made.redo_s = seconds;
  made.group = group;
  made.first_input = static_cast<uint32_t>(inputs_.size());
  made.inputs = static_cast<uint32_t>(inputs.size());
  inputs_.insert(inputs_.end(), inputs.begin(), inputs.end());
}

void PassLog::retime(std::span<const std::pair<size_t, double>> times, double seconds) {
  std::vector<std::optional<double>> told(steps_.size());
  std::map<uint32_t, double> latest_on;
  for (const auto& [step, at] : times) {
    told[step] = at;
    latest_on.emplace(made_[steps_[step].record].device, 0);
  }
  double latest = 0;
  for (size_t i = 0; i < steps_.size(); ++i) {
    const auto on = latest_on.find(made_[steps_[i].record].device);
    double& before = on != latest_on.end() ? on->second : latest;
    before = std::max(before, told[i].value_or(0));
    steps_[i].at = before;
    latest = std::max(latest, before);
  }
  std::ranges::stable_sort(steps_, {}, &ProfiledStep::at);
  seconds_ = std::max(latest, seconds);
}

double PassLog::compute(Time now) noexcept {
  return latest_ = std::max(latest_, std::chrono::duration<double>(now - begin_).count() - paused_);
}

std::vector<uint64_t> PassLog::prefixes() const {
  std::vector<uint64_t> prefixes;
  prefixes.reserve(made_.size());
  uint64_t prefix = 0;
  for (const Made& made : made_) prefixes.push_back(prefix = extended(prefix, made));
  return prefixes;
}

Profile PassLog::profile() const {
  Profile profile;
  profile.records.reserve(made_.size());
  for (const Made& made : made_) {
    ProfiledRecord record{.bytes = made.bytes, .moved = made.moved, .device = made.device, .mobility = made.mobility};
    if (made.redo_s >= 0) {
      const auto first = inputs_.begin() + made.first_input;
      record.recipe = ProfiledRecipe{made.redo_s, {first, first + made.inputs}};
    }
    if (made.op != nullptr) record.op = op_name(made.op);
    if (made.region != nullptr) record.region = made.region;
    const uint64_t kind[] = {made.dtype, size_class(made.bytes)};
    record.kind = XXH3_64bits(kind, sizeof kind);
    profile.records.push_back(std::move(record));
  }
  profile.steps = steps_;
  profile.seconds = seconds_;
  struct Run {
    uint32_t first = 0;           // of what it makes
    std::optional<double> until;  // that it has come to, by the packs seen
  };
  std::unordered_map<uint64_t, Run> runs;
  for (uint32_t i = 0; i < made_.size(); ++i)
    if (made_[i].group != 0 && profile.records[i].recipe) runs.try_emplace(made_[i].group, Run{i, std::nullopt});
  std::map<uint32_t, double> latest_on;  // of each device, which may be one of several that work at once
  for (const ProfiledStep& step : steps_) {
    const double before =
        std::exchange(latest_on.try_emplace(made_[step.record].device, step.at).first->second, step.at);
    auto& recipe = profile.records[step.record].recipe;
    if (step.what != ProfiledStep::What::kPack || !recipe || made_[step.record].group == 0) continue;
    Run& run = runs.at(made_[step.record].group);
    recipe->group = run.first;
    recipe->seconds = step.at - run.until.value_or(before);
    run.until = step.at;
  }
  return profile;
}

}  // namespace ebbtide
