// Host memory into which a record's bytes came back, and which a CPU tensor is then laid over.
#pragma once

#include <ebbtide/pinned_pool/block.h>
#include <ebbtide/pinned_pool/bytes.h>
#include <ebbtide/pinned_pool/export.h>

#include <atomic>
#include <cstddef>
#include <memory>

namespace ebbtide {

class PinnedPool;
class StoreCore;

/// Lifetime: the store and any number of tensors share it; keeps the store's core, and so the pool, alive. Destroyed on
/// any thread, never waits.
class EBBTIDE_API ReturnedMemory {
 public:
  enum class From {
    kReadyPool,     ///< memory that the pool has ready: no system call, for threads that must not wait
    kPoolOrSystem,  ///< the pool may grow, and where it has no room the system serves
  };
  /// `bytes` of memory whose address is `remainder` modulo `modulus` (a power of two, at most a page): what direct I/O
  /// and the kernels' own choice of code path need, see RecordLayout. None where there is no room.
  static std::shared_ptr<ReturnedMemory> make(std::shared_ptr<StoreCore> core, PinnedPool* pool, Bytes bytes,
                                              size_t modulus, size_t remainder, From from);
  ~ReturnedMemory();

  std::byte* data() const noexcept { return data_; }
  Bytes bytes() const noexcept { return bytes_; }

  /// A tensor was laid over it: from now on it counts as handed over until it dies.
  void hand_over() noexcept;

 private:
  ReturnedMemory() = default;

  std::shared_ptr<StoreCore> core_;
  Block block_;
  std::unique_ptr<std::byte, void (*)(void*)> heap_{nullptr, nullptr};
  std::byte* data_ = nullptr;
  Bytes bytes_;
  std::atomic<bool> handed_over_{false};
};

}  // namespace ebbtide
