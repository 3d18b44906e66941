#include <ebbtide/nvme/write_allowance.h>

namespace ebbtide::nvme {

bool WriteAllowance::take(uint64_t bytes, Clock::time_point now) noexcept {
  turn(now);
  if (most_ && (taken_ > *most_ || bytes > *most_ - taken_)) return false;
  hours_[present_] += bytes;
  taken_ += bytes;
  return true;
}

void WriteAllowance::turn(Clock::time_point now) noexcept {
  constexpr std::chrono::hours kHour{1};
  if (now - hour_ >= kHours * kHour) {  // all of it is long ago
    hours_.fill(0);
    taken_ = 0;
    hour_ = now;
  }
  while (now - hour_ >= kHour) {
    hour_ += kHour;
    present_ = (present_ + 1) % kHours;
    taken_ -= hours_[present_];
    hours_[present_] = 0;
  }
}

}  // namespace ebbtide::nvme
