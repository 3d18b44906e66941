// Memory that a ring has registered (io_uring's fixed buffers): its pages are looked up once, not at every request.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>

struct io_uring;

namespace ebbtide::nvme {

/// Memory is registered a moment after it was named, by the ring's thread (IORING_SETUP_SINGLE_ISSUER). What the kernel
/// refuses (RLIMIT_MEMLOCK counts it), and what has no slot, is served without.
class FixedBuffers {
 public:
  /// Threads: any. The ring's thread is to be woken if a slot was taken. False: there was none.
  bool use(std::byte* data, size_t bytes) noexcept;
  /// From now on no request finds it; the pages are let go a moment later. REQUIRES: no request in flight touches it.
  /// True: wake the ring's thread.
  bool forget(const std::byte* data, size_t bytes) noexcept;
  /// Registered now.
  size_t bytes() const noexcept;

  // Threads: the ring's.

  /// False: this kernel has no such thing.
  bool open(io_uring& ring) noexcept;
  /// Nothing is registered from then on. REQUIRES: no request in flight.
  void close(io_uring& ring) noexcept;
  /// Does what use() and forget() asked for.
  void apply(io_uring& ring) noexcept;
  /// Where all of these bytes lie in one registration.
  std::optional<unsigned> slot_of(const std::byte* data, size_t bytes) const noexcept;

 private:
  static constexpr size_t kSlots = 64;
  enum class State : uint8_t { kFree, kAsked, kUsable, kRefused, kForgotten };
  struct Slot {
    std::byte* data = nullptr;
    size_t bytes = 0;
    State state = State::kFree;
  };
  std::optional<unsigned> next_order() const noexcept;

  bool open_ = false;                 // the ring's thread only
  std::atomic<bool> ordered_{false};  // something is to be applied
  mutable std::mutex mutex_;          // guards slots_
  std::array<Slot, kSlots> slots_;
};

}  // namespace ebbtide::nvme
