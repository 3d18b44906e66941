// What a device's events are on the host's clock, which is what the times of several devices can be compared by.
#pragma once

#include <ebbtide/pinned_pool/export.h>
#include <ebbtide/transfer/clock.h>
#include <ebbtide/transfer/device.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <mutex>
#include <optional>

namespace ebbtide {

/// A device tells only what lies between two of its own events. So, while it is wanted, an event is now and then recorded on
/// a stream that is mostly idle: it is no earlier than it was asked for and no later than it was seen to have passed
/// (Cristian, Probabilistic clock synchronization, 1989). The narrowest of these readings is the one that counts.
///
/// Threads: all methods from any. Nothing is waited for.
class EBBTIDE_API DeviceClock {
 public:
  /// `host` outlives the last pump().
  DeviceClock(std::shared_ptr<Device> device, const Clock& host) noexcept : device_(std::move(device)), host_(host) {}

  /// From now on pump() reads the device's clock.
  void want() noexcept { wanted_.store(true, std::memory_order_relaxed); }
  /// To be called often: readings are as good as that.
  void pump() noexcept;

  struct Reading {
    EventPtr event;       ///< of record_timed()
    double host_s = 0;    ///< when it passed, by the host's clock
    double within_s = 0;  ///< true to so many seconds
  };
  /// None before the first.
  std::optional<Reading> reading() const;

 private:
  using Time = std::chrono::nanoseconds;
  void look() noexcept;
  void note(const Reading& reading, Time now);

  const std::shared_ptr<Device> device_;
  const Clock& host_;
  std::atomic<bool> wanted_{false};

  // Of the one thread that is in look().
  std::atomic_flag busy_;
  EventPtr open_;
  Time asked_{};
  Time next_{};

  mutable std::mutex mutex_;
  // Guarded by mutex_.
  std::optional<Reading> best_;
  Time best_at_{};
};

}  // namespace ebbtide
