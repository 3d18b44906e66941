// A clock that stands still until told otherwise.
#pragma once

#include <ebbtide/transfer/clock.h>

#include <atomic>
#include <chrono>

namespace ebbtide::test {

/// Threads: any.
class FakeClock final : public Clock {
 public:
  std::chrono::nanoseconds now() const noexcept override { return std::chrono::nanoseconds(now_.load()); }
  void advance(std::chrono::nanoseconds by) noexcept { now_ += by.count(); }

 private:
  std::atomic<int64_t> now_{0};
};

}  // namespace ebbtide::test
