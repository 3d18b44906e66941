// How much may be written to disks that wear out.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <optional>

namespace ebbtide::nvme {

/// At most so many bytes in any 24 hours. Counted by whole hours, and so up to an hour longer.
///
/// Threads: none of its own; the owner locks.
class WriteAllowance {
 public:
  using Clock = std::chrono::steady_clock;

  /// None: as many as there are. `now`: the beginning; later times must not be earlier.
  WriteAllowance(std::optional<uint64_t> most_a_day, Clock::time_point now) noexcept : most_(most_a_day), hour_(now) {}

  /// False: they would be too many, and nothing was taken.
  bool take(uint64_t bytes, Clock::time_point now) noexcept;
  /// What was taken at `when` is not written after all. It counts no more in the hour in which it was taken: given to
  /// the present one, it would let others of that hour be forgotten.
  /// REQUIRES: so much was taken at that time, and not given back yet; `now` as in take().
  void give_back(uint64_t bytes, Clock::time_point when, Clock::time_point now) noexcept;
  /// In the last 24 hours.
  uint64_t taken() const noexcept { return taken_; }

 private:
  static constexpr size_t kHours = 25;  // the last is not over, so the first counts until it is

  void turn(Clock::time_point now) noexcept;

  std::optional<uint64_t> most_;
  Clock::time_point hour_;  // when the present one began
  size_t present_ = 0;
  std::array<uint64_t, kHours> hours_{};
  uint64_t taken_ = 0;
};

}  // namespace ebbtide::nvme
