// What a PinnedPool and its blocks share: the slabs, and the rules by which they grow and go.
#pragma once

#include <ebbtide/pinned_pool/arena.h>
#include <ebbtide/pinned_pool/capacity.h>
#include <ebbtide/pinned_pool/few.h>
#include <ebbtide/pinned_pool/pool.h>
#include <ebbtide/pinned_pool/returned_blocks.h>
#include <ebbtide/pinned_pool/topology.h>

#include <sys/types.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace ebbtide::pinned_pool {

inline Bytes as_bytes(size_t bytes) {
  return Bytes(static_cast<int64_t>(bytes));
}

/// Lock order: grow_mutex_ < collect_mutex_ < Arena's locks < mutex_. No slab is made or unmade under mutex_.
///
/// Lifetime: the pool and its blocks hold it. When the last of them goes, the keeper (the thread that makes spares) is
/// told to unmap everything and ends; without a keeper the last one unmaps. A state that a fork copied is leaked in the
/// child: its slabs, locks and thread are the parent's.
class PoolState {
 public:
  ~PoolState();
  PoolState(const PoolState&) = delete;
  PoolState& operator=(const PoolState&) = delete;
  static Result<std::shared_ptr<PoolState>> create(PoolOptions options);

  struct Lent {
    ReturnedBlock* way_back = nullptr;  ///< for release()
    Few<Chunk> chunks;
    NumaNode node = kAnyNode;
  };
  Result<Lent> acquire(const PinnedPool::Request& request);
  /// Takes no lock: a thread that was stopped anywhere in here stops no other's release.
  void release(ReturnedBlock* way_back, Few<Chunk> chunks, Bytes size, NumaNode node) noexcept;
  Bytes trim();
  PoolStats stats() const;
  bool some_pageable() const noexcept { return pageable_slabs_.load(std::memory_order_relaxed) > 0; }

 private:
  class Lifeline;

  /// A slab for one contiguous request that was larger than the pool's slabs.
  struct Dedicated {
    NumberedSlab slab;
    size_t home = 0;  ///< index into homes_
    bool lent = true;
    uint64_t idle_since = 0;  ///< ticks of releases_
  };
  /// A node and its arena.
  struct Home {
    NumaNode node;
    std::unique_ptr<Arena> arena;
  };

  PoolState(PoolOptions options, Bytes capacity, size_t slab_bytes);
  Status open_homes();
  void start_keeper(const std::shared_ptr<PoolState>& self);
  void keep_spares();
  void stop_keeper() noexcept;
  void unmap_everything() noexcept;
  bool forked() const noexcept;

  // lending.cpp
  size_t home_of(NumaNode node) const noexcept;
  Result<Few<Chunk>> acquire_on(size_t home, const PinnedPool::Request& request);
  Result<Arena::Allocation> acquire_part(size_t home, size_t& bytes, bool may_grow);
  Result<Arena::Allocation> acquire_piece(size_t home, size_t bytes, bool may_grow);
  Result<Chunk> acquire_dedicated(size_t home, size_t bytes, bool may_grow);
  std::optional<Chunk> reuse_dedicated(size_t home, size_t bytes);
  bool collect() noexcept;
  std::unique_ptr<ReturnedBlock> make_way_back();
  bool take_returned_locked() noexcept;
  void give_back(const Chunk& chunk, const ReturnedBlock& block) noexcept;
  void count_live(Bytes bytes) noexcept;

  // growing.cpp. REQUIRES: grow_mutex_ held.
  Result<NumberedSlab> make_slab(size_t home, size_t bytes, bool may_evict);
  std::optional<Failure> shortage(size_t home, size_t bytes, Bytes& missing) const;
  Bytes idle_bytes() const;
  Bytes evict(Bytes bytes);
  void unmap(NumberedSlab slab) noexcept;

  const pid_t pid_;
  const PoolOptions options_;
  const Capacity system_;
  const Bytes capacity_;
  const size_t slab_bytes_;
  std::shared_ptr<const Topology> topology_;
  std::vector<Home> homes_;  ///< fixed once created; one with kAnyNode where nothing is bound

  std::mutex
      grow_mutex_;  ///< held while slabs are made and unmade, so that threads out of room map one slab and not one each

  ReturnedBlocks returned_;                  ///< released, and not given back to arenas and dedicated slabs yet
  std::mutex collect_mutex_;                 ///< held while they are; guards what follows
  ReturnedBlock* spare_returned_ = nullptr;  ///< a list of those that are no block's

  mutable std::mutex mutex_;                 ///< guards what follows
  std::map<uint32_t, Dedicated> dedicated_;  ///< by the slab's number
  std::vector<bool> numbers_;                ///< taken ones
  Bytes mapped_;                             ///< slabs there are and the one being made
  Bytes peak_mapped_;
  int64_t slabs_ = 0;
  int64_t growths_ = 0;
  int64_t returns_ = 0;
  std::chrono::nanoseconds growing_{0};
  Bytes pinned_;
  int64_t small_page_slabs_ = 0;
  std::atomic<int64_t> pageable_slabs_ = 0;  ///< read without the mutex
  std::string pageable_because_;
  std::string unbound_because_;
  std::string inherited_because_;
  std::optional<size_t> spare_wanted_;  ///< for this home
  bool stopping_ = false;
  std::condition_variable keeper_wakes_;

  bool has_keeper_ = false;  ///< fixed once created
  std::atomic<bool> cancelled_ = false;
  std::atomic<int64_t> live_ = 0;
  std::atomic<uint64_t> releases_ = 0;
  std::atomic<int64_t> peak_live_ = 0;
  std::atomic<int64_t> refusals_ = 0;
  std::atomic<int64_t> other_node_ = 0;
};

}  // namespace ebbtide::pinned_pool
