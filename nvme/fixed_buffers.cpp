#include <ebbtide/nvme/fixed_buffers.h>

#include <liburing.h>

#include <algorithm>

namespace ebbtide::nvme {
namespace {

constexpr size_t kLargest = size_t{1} << 30;  // the kernel's limit for one buffer

}  // namespace

bool FixedBuffers::use(std::byte* data, size_t bytes) noexcept {
  const std::lock_guard lock(mutex_);
  bool any = false;
  for (size_t done = 0; done < bytes;) {
    const auto slot = std::ranges::find(slots_, State::kFree, &Slot::state);
    if (slot == slots_.end()) break;
    *slot = {data + done, std::min(kLargest, bytes - done), State::kAsked};
    done += slot->bytes;
    any = true;
  }
  if (any) ordered_.store(true, std::memory_order_release);
  return any;
}

bool FixedBuffers::forget(const std::byte* data, size_t bytes) noexcept {
  const std::lock_guard lock(mutex_);
  bool any = false;
  for (Slot& slot : slots_) {
    if (slot.state == State::kFree || slot.data < data || slot.data >= data + bytes) continue;
    slot.state = State::kForgotten;  // also what is being registered right now
    any = true;
  }
  if (any) ordered_.store(true, std::memory_order_release);
  return any;
}

size_t FixedBuffers::bytes() const noexcept {
  const std::lock_guard lock(mutex_);
  size_t bytes = 0;
  for (const Slot& slot : slots_) bytes += slot.state == State::kUsable ? slot.bytes : 0;
  return bytes;
}

bool FixedBuffers::open(io_uring& ring) noexcept {
  open_ = ::io_uring_register_buffers_sparse(&ring, kSlots) == 0;
  return open_;
}

void FixedBuffers::close(io_uring& ring) noexcept {
  if (!open_) return;
  open_ = false;
  (void)::io_uring_unregister_buffers(
      &ring);  // if it fails, the kernel lets go when the last copy of the ring is closed
  const std::lock_guard lock(mutex_);
  slots_ = {};
}

/// REQUIRES: mutex_ held.
std::optional<unsigned> FixedBuffers::next_order() const noexcept {
  const auto slot = std::ranges::find_if(
      slots_, [](const Slot& s) { return s.state == State::kAsked || s.state == State::kForgotten; });
  if (slot == slots_.end()) return std::nullopt;
  return static_cast<unsigned>(slot - slots_.begin());
}

void FixedBuffers::apply(io_uring& ring) noexcept {
  if (!ordered_.exchange(false, std::memory_order_acquire)) return;
  std::unique_lock lock(mutex_);
  while (const auto index = next_order()) {
    Slot& slot = slots_[*index];
    const bool asked = slot.state == State::kAsked;
    const iovec memory{asked ? slot.data : nullptr, asked ? slot.bytes : 0};  // null: the slot becomes empty
    lock.unlock();                                                            // pinning takes milliseconds
    const int done = open_ ? ::io_uring_register_buffers_update_tag(&ring, *index, &memory, nullptr, 1) : -1;
    lock.lock();
    if (!asked)
      slot = {};
    else if (slot.state == State::kAsked)  // else it was forgotten meanwhile, and comes again
      slot.state = done == 1 ? State::kUsable : State::kRefused;
  }
}

std::optional<unsigned> FixedBuffers::slot_of(const std::byte* data, size_t bytes) const noexcept {
  if (!open_) return std::nullopt;
  const std::lock_guard lock(mutex_);
  for (const Slot& slot : slots_) {
    if (slot.state == State::kUsable && slot.data <= data && data + bytes <= slot.data + slot.bytes)
      return static_cast<unsigned>(&slot - slots_.data());
  }
  return std::nullopt;
}

}  // namespace ebbtide::nvme
