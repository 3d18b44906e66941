// Host memory handed out by a PinnedPool.
#pragma once

#include <ebbtide/pinned_pool/bytes.h>
#include <ebbtide/pinned_pool/few.h>
#include <ebbtide/pinned_pool/numa_node.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

namespace ebbtide {

/// One run of host memory inside one slab and, if pinned, one registration; aligned to the system's pages. What lies
/// between its end and the next page belongs to it too (direct I/O wants whole ones).
struct Chunk {
  std::byte* data = nullptr;
  size_t bytes = 0;
  uint32_t slab = 0;  ///< the slab's number in its pool, below the number of slabs alive at once; goes to another slab
                      ///< when this one is unmapped
  bool continues = false;  ///< lies right behind the chunk before it, parted only by registrations: the pool's concern
};

namespace pinned_pool {
class PoolState;
struct ReturnedBlock;
}  // namespace pinned_pool

/// Host memory for one record: chunks of at most 32 MiB, all on one NUMA node, each inside one slab; or one single chunk,
/// if asked for contiguous.
///
/// Lifetime: gives its chunks back when destroyed, also after the pool's owner is gone. Never waits. In a forked child
/// it gives nothing back: the
///           memory is the parent's.
/// Threads:  used by one thread at a time; destroyed on any.
/// Stream:   memory is reused at once. Destroy only after the last copy or transfer that touches it has completed.
class Block {
 public:
  Block() noexcept = default;  ///< empty
  Block(Block&& other) noexcept;
  Block& operator=(Block&& other) noexcept;
  ~Block();

  explicit operator bool() const noexcept { return !chunks_.empty(); }
  Bytes size() const noexcept { return size_; }  ///< as asked for: the sum of the chunks' bytes
  NumaNode node() const noexcept { return node_; }
  std::span<const Chunk> chunks() const noexcept { return {chunks_.data(), chunks_.size()}; }

 private:
  friend class PinnedPool;
  Block(std::shared_ptr<pinned_pool::PoolState> pool, pinned_pool::ReturnedBlock* way_back, Few<Chunk> chunks,
        Bytes size, NumaNode node) noexcept;
  void release() noexcept;

  std::shared_ptr<pinned_pool::PoolState> pool_;
  pinned_pool::ReturnedBlock* way_back_ = nullptr;  // ours until it is released
  Few<Chunk> chunks_;
  Bytes size_;
  NumaNode node_ = kAnyNode;
};

}  // namespace ebbtide
