// Time as a parameter, so that what depends on it can be tested without sleeping.
#pragma once

#include <chrono>

namespace ebbtide {

/// Threads: any.
class Clock {
 public:
  virtual ~Clock() = default;
  /// Time since an arbitrary origin. Never goes backwards.
  virtual std::chrono::nanoseconds now() const noexcept = 0;
};

class SteadyClock final : public Clock {
 public:
  std::chrono::nanoseconds now() const noexcept override {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch());
  }
};

}  // namespace ebbtide
