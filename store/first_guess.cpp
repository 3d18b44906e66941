#include <ebbtide/store/first_guess.h>

#include <algorithm>
#include <cmath>
#include <queue>
#include <utility>

namespace ebbtide {

namespace {
constexpr double kNever = std::numeric_limits<double>::infinity();
}

FirstGuess::FirstGuess(const Profile& profile, const Machine& machine, const Budgets& budgets, uint32_t device,
                       bool recompute)
    : records_(profile.records.size()),
      device_(static_cast<double>(budgets.device.count())),
      host_(static_cast<double>(budgets.host.count())),
      spill_(static_cast<double>(budgets.spill.count())),
      has_host_(machine.link.has_value()) {
  if (machine.link) link_ = machine.link->out.alone;
  if (machine.disk) disk_ = machine.disk->write;
  const double first = has_host_ ? link_ : disk_;
  stall_ratio_ = first > 0 ? 1 / first : kNever;
  const std::vector<double> redo_s = redo_shares(profile);
  for (const ProfiledStep& step : profile.steps) {
    if (step.what == ProfiledStep::What::kUnpack) break;
    const ProfiledRecord& record = profile.records[step.record];
    if (step.what != ProfiledStep::What::kPack || record.device != device) continue;
    if (record.mobility == Mobility::kElsewhere || record.moved == Bytes(0)) continue;
    const auto bytes = static_cast<double>(record.moved.count());
    const bool redoable = recompute && record.recipe && record.mobility == Mobility::kMovable;
    packs_.push_back({step.record, step.at, bytes, redoable ? redo_s[step.record] / bytes : kNever});
  }
}

/// Goes through the forward, and where more is there than can have left by then, has the cheapest of it redone. What
/// must have left by one pack must have by the next, so the cheapest of all so far is right each time, but for its size.
std::vector<Action> FirstGuess::make(const GuessOptions& options) const {
  using Item = std::pair<double, uint32_t>;  // minus ratio, place in packs_
  std::priority_queue<Item> cheapest;        // of equals the latest
  std::vector<Action> actions(records_, Action::kOffload);
  double load = 0, stall = 0;
  for (uint32_t i = 0; i < packs_.size(); ++i) {
    const Packed& packed = packs_[i];
    if (packed.ratio < options.always_redo * stall_ratio_) {
      actions[packed.record] = Action::kRecompute;
      continue;
    }
    load += packed.bytes;
    if (packed.ratio <= options.most_redo * stall_ratio_ && packed.ratio < kNever)
      cheapest.emplace(
          -(options.blur > 0 ? std::floor(std::log(packed.ratio / stall_ratio_) / options.blur) : packed.ratio), i);
    const double time = packed.at + stall;
    const double sunk = std::min(spill_, disk_ * time * options.speed);
    const double left = has_host_ ? std::min(link_ * time * options.speed, host_ + sunk) : sunk;
    for (double over = load - device_ * options.room - left; over > 0;) {
      if (cheapest.empty()) {
        if (link_ + disk_ > 0) stall += over * stall_ratio_;
        break;
      }
      const Packed& redone = packs_[cheapest.top().second];
      cheapest.pop();
      actions[redone.record] = Action::kRecompute;
      load -= redone.bytes;
      over -= redone.bytes;
    }
  }
  return actions;
}

}  // namespace ebbtide
