#include <ebbtide/store/profile.h>

#include <algorithm>
#include <cmath>
#include <unordered_map>
#include <utility>

namespace ebbtide {
namespace {

constexpr Bytes kMostBytes{int64_t{1} << 60};

std::string record_named(size_t index) {
  return "record " + std::to_string(index);
}

/// Whether following recipes from some record leads back to it.
bool has_circle(const std::vector<ProfiledRecord>& records) {
  enum : uint8_t { kNew, kOpen, kDone };
  std::vector<uint8_t> state(records.size(), kNew);
  std::vector<std::pair<uint32_t, size_t>> path;  // a record, and which of its inputs is next
  for (uint32_t start = 0; start < records.size(); ++start) {
    if (state[start] != kNew) continue;
    path.emplace_back(start, 0);
    while (!path.empty()) {
      auto& [record, next] = path.back();
      state[record] = kOpen;
      const auto& recipe = records[record].recipe;
      if (!recipe || next == recipe->inputs.size()) {
        state[record] = kDone;
        path.pop_back();
        continue;
      }
      const uint32_t input = recipe->inputs[next++];
      if (state[input] == kOpen) return true;
      if (state[input] == kNew) path.emplace_back(input, 0);
    }
  }
  return false;
}

std::optional<std::string> invalid_record(const ProfiledRecord& record, size_t records) {
  if (record.bytes < Bytes(0) || record.moved < Bytes(0)) return "has a negative size";
  if (record.moved > record.bytes) return "moves more bytes than it has";
  if (record.device >= Profile::kMostDevices) return "is on device " + std::to_string(record.device);
  if (!record.recipe) return std::nullopt;
  if (!(record.recipe->seconds >= 0) || !std::isfinite(record.recipe->seconds)) return "has a recipe of no valid time";
  for (const uint32_t input : record.recipe->inputs)
    if (input >= records) return "has a recipe that reads " + record_named(input) + ", which is not there";
  if (record.recipe->group && *record.recipe->group >= records)
    return "is made with " + record_named(*record.recipe->group) + ", which is not there";
  return std::nullopt;
}

bool did_the_same(const Profile& one, const Profile& other) {
  return std::ranges::equal(one.records, other.records,
                            [](const ProfiledRecord& a, const ProfiledRecord& b) {
                              return a.bytes == b.bytes && a.moved == b.moved && a.device == b.device &&
                                     a.kind == b.kind && a.op == b.op;
                            }) &&
         std::ranges::equal(one.steps, other.steps, [](const ProfiledStep& a, const ProfiledStep& b) {
           return a.what == b.what && a.record == b.record;
         });
}

}  // namespace

std::optional<std::string> Profile::invalid() const {
  Bytes room = kMostBytes;
  for (size_t i = 0; i < records.size(); ++i) {
    if (const auto why = invalid_record(records[i], records.size())) return record_named(i) + " " + *why;
    if (records[i].bytes > room) return "the records have more than an exbibyte";
    room -= records[i].bytes;
  }
  for (size_t i = 0; i < records.size(); ++i) {
    if (!records[i].recipe || !records[i].recipe->group) continue;
    const uint32_t first = *records[i].recipe->group;
    if (first > i || !records[first].recipe || records[first].recipe->group != first)
      return record_named(i) + " is made with " + record_named(first) + ", which is not the first of its run";
  }
  if (has_circle(records)) return "a recipe rests on itself";
  enum : uint8_t { kUnseen, kAlive, kDead };
  std::vector<uint8_t> state(records.size(), kUnseen);
  double before = 0;
  for (size_t i = 0; i < steps.size(); ++i) {
    const auto& [what, record, at] = steps[i];
    const std::string name = "step " + std::to_string(i);
    if (record >= records.size()) return name + " is of " + record_named(record) + ", which is not there";
    if (!(at >= before) || !std::isfinite(at)) return name + " is earlier than the one before it";
    before = at;
    if (state[record] != (what == ProfiledStep::What::kPack ? kUnseen : kAlive))
      return name + ": " + record_named(record) + " is packed twice, or not alive";
    state[record] = what == ProfiledStep::What::kDeath ? kDead : kAlive;
  }
  for (size_t i = 0; i < records.size(); ++i)
    if (state[i] == kUnseen) return record_named(i) + " is never packed";
  if (!(seconds >= before) || !std::isfinite(seconds)) return "the end is earlier than the last step";
  return std::nullopt;
}

std::vector<double> redo_shares(const Profile& profile) {
  struct Run {
    double seconds = 0, bytes = 0;
  };
  std::unordered_map<uint32_t, Run> runs;
  for (const ProfiledRecord& record : profile.records) {
    if (!record.recipe || !record.recipe->group) continue;
    Run& run = runs[*record.recipe->group];
    run.seconds += record.recipe->seconds;
    run.bytes += static_cast<double>(record.moved.count());
  }
  std::vector<double> shares(profile.records.size());
  for (size_t i = 0; i < shares.size(); ++i) {
    const auto& recipe = profile.records[i].recipe;
    if (!recipe) continue;
    shares[i] = recipe->seconds;
    if (!recipe->group) continue;
    const Run& run = runs.at(*recipe->group);
    shares[i] = run.bytes > 0 ? run.seconds * static_cast<double>(profile.records[i].moved.count()) / run.bytes : 0;
  }
  return shares;
}

std::optional<Profile> median(std::span<const Profile> passes) {
  if (passes.empty()) return std::nullopt;
  Profile result = passes.back();
  std::vector<const Profile*> same;
  for (const Profile& pass : passes)
    if (did_the_same(pass, result)) same.push_back(&pass);
  std::vector<double> times;
  const auto median_of = [&](auto time_in) {
    times.clear();
    for (const Profile* pass : same)
      if (const std::optional<double> time = time_in(*pass)) times.push_back(*time);
    const auto middle = times.begin() + static_cast<std::ptrdiff_t>((times.size() - 1) / 2);
    std::ranges::nth_element(times, middle);
    return *middle;
  };
  // The k-th smallest of times that rise in each pass rises too: the steps stay in order.
  for (size_t i = 0; i < result.steps.size(); ++i)
    result.steps[i].at = median_of([i](const Profile& pass) { return std::optional(pass.steps[i].at); });
  result.seconds = median_of([](const Profile& pass) { return std::optional(pass.seconds); });
  for (size_t i = 0; i < result.records.size(); ++i) {
    if (!result.records[i].recipe) continue;
    result.records[i].recipe->seconds = median_of([i](const Profile& pass) {
      const auto& recipe = pass.records[i].recipe;
      return recipe ? std::optional(recipe->seconds) : std::nullopt;
    });
  }
  return result;
}

}  // namespace ebbtide
