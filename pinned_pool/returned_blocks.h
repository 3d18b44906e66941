// Blocks on their way back to their pool: pushed without waiting, taken by whoever next needs memory.
#pragma once

#include <ebbtide/pinned_pool/block.h>
#include <ebbtide/pinned_pool/few.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <utility>

namespace ebbtide::pinned_pool {

/// A block's place in the list, made when it is acquired: a release needs no memory. Not in the block's own memory, into
/// which a device that is out of order might still write.
struct ReturnedBlock {
  Few<Chunk> chunks;
  size_t home = 0;
  uint64_t at = 0;  ///< when, in releases
  // The list's own.
  std::atomic<ReturnedBlock*> before{nullptr};
  ReturnedBlock* next = nullptr;
};

/// Threads: push() on any, several at once: one exchange and one store, whatever other threads do or fail to do (on
/// processors where an exchange is one instruction; elsewhere it is tried again while others succeed). take_all(): one
/// at a time. Lifetime: owns none.
class ReturnedBlocks {
 public:
  void push(ReturnedBlock* block) noexcept { finish(begin(block)); }

  /// The two halves of a push, between which its thread may be stopped. What was pushed before is then out of reach too.
  struct Begun {
    ReturnedBlock* block;
    ReturnedBlock* before;
  };
  Begun begin(ReturnedBlock* block) noexcept {
    block->before.store(unknown(), std::memory_order_relaxed);
    return {block, head_.exchange(block, std::memory_order_acq_rel)};
  }
  static void finish(Begun begun) noexcept { begun.block->before.store(begun.before, std::memory_order_release); }

  /// Calls `give_back(block)` for each whose push has ended and behind no other's that has not. Returns whether there was one.
  template <class GiveBack>
  bool take_all(GiveBack&& give_back) noexcept {
    bool any = false;
    ReturnedBlock* broken = std::exchange(broken_, nullptr);
    any |= take_chain(head_.exchange(nullptr, std::memory_order_acq_rel), give_back);
    while (broken != nullptr) any |= take_chain(std::exchange(broken, broken->next), give_back);
    return any;
  }

 private:
  static ReturnedBlock* unknown() noexcept { return reinterpret_cast<ReturnedBlock*>(uintptr_t{1}); }

  template <class GiveBack>
  bool take_chain(ReturnedBlock* block, GiveBack& give_back) noexcept {
    bool any = false;
    while (block != nullptr) {
      ReturnedBlock* before = block->before.load(std::memory_order_acquire);
      if (before == unknown()) {
        block->next = std::exchange(broken_, block);
        return any;
      }
      give_back(block);
      block = before;
      any = true;
    }
    return any;
  }

  std::atomic<ReturnedBlock*> head_{nullptr};
  ReturnedBlock* broken_ = nullptr;  // chains whose first push has not ended
};

}  // namespace ebbtide::pinned_pool
