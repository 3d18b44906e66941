// Chunks on their way back to their pool: pushed without waiting, taken by whoever next needs memory.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <new>
#include <utility>

namespace ebbtide::pinned_pool {

/// A list in the memory of the chunks themselves.
///
/// Threads: push() on any, several at once: one exchange and one store, whatever other threads do or fail to do (on
/// processors where an exchange is one instruction; elsewhere it is tried again while others succeed). take_all(): one
/// at a time.
class ReturnedChunks {
 public:
  struct Chunk {
    std::byte* data = nullptr;
    size_t bytes = 0;
    uint32_t slab = 0;  ///< its number
    uint32_t home = 0;
    uint64_t at = 0;  ///< when, in ticks
  };

  /// REQUIRES: at least a page of memory, to which nobody writes any more.
  void push(const Chunk& chunk) noexcept { finish(begin(chunk)); }

  /// The two halves of a push, between which its thread may be stopped. What was pushed before is then out of reach too.
  struct Node;
  struct Begun {
    Node* node;
    Node* before;
  };
  Begun begin(const Chunk& chunk) noexcept {
    auto* node = new (chunk.data) Node{chunk};
    return {node, head_.exchange(node, std::memory_order_acq_rel)};
  }
  static void finish(Begun begun) noexcept { begun.node->before.store(begun.before, std::memory_order_release); }

  /// Calls `give_back(chunk)` for each whose push has ended and behind no other's that has not. Returns whether there was one.
  template <class GiveBack>
  bool take_all(GiveBack&& give_back) noexcept {
    bool any = false;
    Node* broken = std::exchange(broken_, nullptr);
    any |= take_chain(head_.exchange(nullptr, std::memory_order_acq_rel), give_back);
    while (broken != nullptr) any |= take_chain(std::exchange(broken, broken->next_broken), give_back);
    return any;
  }

  struct Node {
    Chunk chunk;
    std::atomic<Node*> before{unknown()};
    Node* next_broken = nullptr;  // take_all()'s
  };

 private:
  static Node* unknown() noexcept { return reinterpret_cast<Node*>(uintptr_t{1}); }

  template <class GiveBack>
  bool take_chain(Node* node, GiveBack& give_back) noexcept {
    bool any = false;
    while (node != nullptr) {
      Node* before = node->before.load(std::memory_order_acquire);
      if (before == unknown()) {
        node->next_broken = std::exchange(broken_, node);
        return any;
      }
      const Chunk chunk = node->chunk;
      node->~Node();
      give_back(chunk);
      node = before;
      any = true;
    }
    return any;
  }

  std::atomic<Node*> head_{nullptr};
  Node* broken_ = nullptr;  // chains whose first push has not ended
};

}  // namespace ebbtide::pinned_pool
