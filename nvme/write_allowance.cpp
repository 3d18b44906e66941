#include <ebbtide/nvme/write_allowance.h>

#include <algorithm>

namespace ebbtide::nvme {
namespace {

constexpr std::chrono::hours kHour{1};

}  // namespace

bool WriteAllowance::take(uint64_t bytes, Clock::time_point now) noexcept {
  turn(now);
  if (most_ && (taken_ > *most_ || bytes > *most_ - taken_)) return false;
  hours_[present_] += bytes;
  taken_ += bytes;
  return true;
}

void WriteAllowance::give_back(uint64_t bytes, Clock::time_point when, Clock::time_point now) noexcept {
  turn(now);
  size_t ago = 0;  // hours, before the present one
  while (ago < kHours && when < hour_ - static_cast<int64_t>(ago) * kHour) ++ago;
  if (ago == kHours) return;  // it counts no more
  uint64_t& hour = hours_[(present_ + kHours - ago) % kHours];
  const uint64_t back = std::min(bytes, hour);  // after a pause of more than a day the hours begin elsewhere
  hour -= back;
  taken_ -= back;
}

void WriteAllowance::turn(Clock::time_point now) noexcept {
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
