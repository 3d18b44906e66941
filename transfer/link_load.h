// What the two lanes of a device tell each other: whether, and when, the link was busy the other way.
#pragma once

#include <ebbtide/transfer/bandwidth.h>
#include <ebbtide/transfer/device.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>

namespace ebbtide {

/// Copies of one direction, between two events that the device times.
struct TimedCopies {
  EventPtr begin, end;
};

/// Threads: any.
class LinkLoad {
 public:
  /// Enqueued, and not seen to have passed.
  std::atomic<int64_t> out_bytes{0};
  std::atomic<int64_t> in_bytes{0};

  /// In the order of their stream.
  void enqueued(Direction direction, TimedCopies copies);
  /// Whether the other direction was idle while these copies ran, or busy nearly all the time; none for what lies between.
  /// REQUIRES: they have passed; of one direction they are asked about in order.
  std::optional<LinkUse> use_of(Device& device, Direction direction, const TimedCopies& copies);

 private:
  /// The latest of one direction that may have run beside what the other is yet to ask about.
  class Ring {
   public:
    bool empty() const noexcept { return size_ == 0; }
    size_t size() const noexcept { return size_; }
    const TimedCopies& operator[](size_t i) const noexcept { return all_[(first_ + i) % kMost]; }
    void push(TimedCopies copies);
    void pop() noexcept;

   private:
    static constexpr size_t kMost = 64;
    std::array<TimedCopies, kMost> all_;
    size_t first_ = 0, size_ = 0;
  };

  std::mutex mutex_;  // held while the device is asked for times, which waits for nothing
  std::array<Ring, 2> timed_;
};

}  // namespace ebbtide
