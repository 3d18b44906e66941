#include <ebbtide/transfer/device_clock.h>

#include <utility>

namespace ebbtide {
namespace {

using std::chrono::duration;
constexpr std::chrono::milliseconds kEvery{5};
/// Clocks drift apart by some millionths of the time.
constexpr std::chrono::seconds kGoodFor{10};

double seconds(std::chrono::nanoseconds time) noexcept {
  return duration<double>(time).count();
}

}  // namespace

void DeviceClock::pump() noexcept {
  if (!wanted_.load(std::memory_order_relaxed) || busy_.test_and_set(std::memory_order_acquire)) return;
  look();
  busy_.clear(std::memory_order_release);
}

void DeviceClock::look() noexcept {
  if (!open_) {
    const Time now = host_.now();
    if (now < next_) return;
    next_ = now + kEvery;
    Result<EventPtr> event = device_->record_timed(device_->copy_stream(Direction::kIn));
    if (!event.ok()) {
      if (event.failure().code != FailureCode::kOverCapacity) wanted_.store(false, std::memory_order_relaxed);
      return;
    }
    open_ = std::move(event).value();
    asked_ = now;
  }
  const Result<bool> passed = device_->passed(open_);
  if (passed.ok() && !passed.value()) return;
  const EventPtr event = std::exchange(open_, nullptr);
  if (!passed.ok()) return;
  const Time now = host_.now();
  note({event, seconds(asked_ + (now - asked_) / 2), seconds(now - asked_) / 2}, now);
}

void DeviceClock::note(const Reading& reading, Time now) {
  const std::lock_guard lock(mutex_);
  if (best_ && reading.within_s > best_->within_s && now - best_at_ < kGoodFor) return;
  best_ = reading;
  best_at_ = now;
}

std::optional<DeviceClock::Reading> DeviceClock::reading() const {
  const std::lock_guard lock(mutex_);
  return best_;
}

}  // namespace ebbtide
