#include <ebbtide/transfer/link_load.h>

#include <algorithm>
#include <utility>

namespace ebbtide {
namespace {

constexpr double kNearlyAll = 0.9;

}  // namespace

void LinkLoad::Ring::push(TimedCopies copies) {
  if (size_ == kMost) pop();
  all_[(first_ + size_++) % kMost] = std::move(copies);
}

void LinkLoad::Ring::pop() noexcept {
  all_[first_] = {};
  first_ = (first_ + 1) % kMost;
  --size_;
}

void LinkLoad::enqueued(Direction direction, TimedCopies copies) {
  const std::lock_guard lock(mutex_);
  timed_[static_cast<size_t>(direction)].push(std::move(copies));
}

std::optional<LinkUse> LinkLoad::use_of(Device& device, Direction direction, const TimedCopies& copies) {
  // None: the device has not come so far.
  const auto between = [&](const EventPtr& from, const EventPtr& to) -> std::optional<double> {
    const Result<double> seconds = device.seconds_between(from, to);
    return seconds.ok() ? std::optional(seconds.value()) : std::nullopt;
  };
  const std::lock_guard lock(mutex_);
  Ring& others = timed_[1 - static_cast<size_t>(direction)];
  const double all = between(copies.begin, copies.end).value_or(0);
  double both = 0;
  for (size_t i = 0; i < others.size(); ++i) {
    const auto end = between(copies.begin, others[i].end);  // after ours began
    if (end && *end <= 0) {
      others.pop();  // what comes later in our direction begins later still
      --i;
      continue;
    }
    const auto begin = between(copies.begin, others[i].begin);
    if (!begin || *begin >= all) break;
    both += std::min(all, end.value_or(all)) - std::max(0.0, *begin);
  }
  if (both <= 0) return LinkUse::kAlone;
  return both >= kNearlyAll * all ? std::optional(LinkUse::kDuplex) : std::nullopt;
}

}  // namespace ebbtide
