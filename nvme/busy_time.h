// For how long something has been in flight.
#pragma once

#include <chrono>

namespace ebbtide::nvme {

/// Seconds in which at least one transfer of a direction was in flight.
class BusyTime {
 public:
  void begin() noexcept {
    if (count_++ == 0) since_ = Clock::now();
  }
  void end() noexcept {
    if (--count_ == 0) total_ += Clock::now() - since_;
  }
  double seconds() const noexcept {
    const Clock::duration now = count_ > 0 ? Clock::now() - since_ : Clock::duration{};
    return std::chrono::duration<double>(total_ + now).count();
  }

 private:
  using Clock = std::chrono::steady_clock;
  int count_ = 0;
  Clock::time_point since_;
  Clock::duration total_{};
};

}  // namespace ebbtide::nvme
