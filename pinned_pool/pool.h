// The pool of host memory: slabs it owns, blocks it lends.
#pragma once

#include <ebbtide/pinned_pool/block.h>
#include <ebbtide/pinned_pool/bytes.h>
#include <ebbtide/pinned_pool/host_registrar.h>
#include <ebbtide/pinned_pool/result.h>
#include <ebbtide/pinned_pool/slab_watcher.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

namespace ebbtide {

class Topology;

struct PoolOptions {
  std::optional<Bytes>
      capacity;  ///< the most that slabs may take, spare included; none: half of what memory and cgroups leave
  std::optional<Bytes>
      slab_bytes;  ///< none: min(clamp(capacity/16, 64 MiB, 1 GiB), capacity/4); rounded down to a power of two
  std::shared_ptr<HostRegistrar> registrar;  ///< none: pageable memory (right for CPU tensors)
  std::shared_ptr<SlabWatcher> watcher;      ///< told of slabs; none: nobody
  bool keep_spare = true;  ///< keep one ready slab beyond need, so that growth seldom waits; costs a thread
  bool numa_bind = true;
  bool survives_fork = true;  ///< false: MADV_DONTFORK (DMA targets). Memory lent to CPU tensors must survive fork
  std::shared_ptr<const Topology> topology;  ///< none: this machine's, loaded if numa_bind
  std::string system_root;  ///< put before /proc and /sys where capacity is read: tests bring their own machine
};

struct PoolStats {
  Bytes capacity;
  Bytes most_slab_bytes;  ///< the capacity in whole slabs: no block but a contiguous one can be larger
  Bytes slab_bytes;       ///< mapped now, spare included
  Bytes peak_slab_bytes;
  Bytes live_bytes;  ///< in blocks now, as asked for
  Bytes peak_live_bytes;
  int64_t slabs = 0;
  int64_t growths = 0;            ///< slabs ever mapped
  int64_t refusals = 0;           ///< acquire() that said no
  int64_t other_node = 0;         ///< blocks that came from another node than asked
  int64_t returns = 0;            ///< slabs unmapped again, to make room or by trim()
  double growing_s = 0;           ///< spent on making slabs, spares included
  Bytes pinned_bytes;             ///< of slab_bytes
  bool huge_pages = false;        ///< for all slabs there are
  bool pinned = false;            ///< all slabs there are
  std::string pageable_because;   ///< the first reason; empty when pinned
  std::string unbound_because;    ///< why slabs are not bound to a node; empty when bound or not asked to be
  std::string inherited_because;  ///< why a forked child inherits them though it must not; empty otherwise
};

/// Host memory in slabs that are bound to a NUMA node, prefaulted and pinned once, then lent in blocks for about a
/// microsecond each.
///
/// A contiguous request larger than a slab gets a slab of its own, kept for the next of about its size; idle memory of
/// one kind makes room for another.
///
/// Threads:  all methods from any. In a forked child acquire() refuses.
/// Lifetime: destroying it refuses further acquires; slabs live until the last block is gone, and go within a second
/// after it.
class PinnedPool {
 public:
  /// Errors: kInvalid (a capacity or slab size that makes no sense), kOverCapacity (no capacity given and nothing
  /// left), kUnsupported.
  static Result<std::unique_ptr<PinnedPool>> create(PoolOptions options);
  ~PinnedPool();

  struct Request {
    Bytes bytes;
    NumaNode node = kAnyNode;  ///< any: the calling thread's
    bool contiguous =
        false;             ///< one chunk (CPU tensors live in it), registrations or not; else chunks of at most 32 MiB
    bool may_grow = true;  ///< false: only from slabs that are there (never maps, never waits for pages)
  };
  /// Memory aligned to the system's pages, contents unspecified. Errors: kOverCapacity with numbers, kInvalid for zero bytes,
  /// kUnsupported in a forked child.
  Result<Block> acquire(const Request& request);

  /// Gives idle slabs back to the system; returns the bytes given back.
  Bytes trim();
  PoolStats stats() const;
  /// Whether some slab is not pinned throughout; stats() then says why. Costs nothing, takes no lock.
  bool some_pageable() const noexcept;

 private:
  explicit PinnedPool(std::shared_ptr<pinned_pool::PoolState> state);
  std::shared_ptr<pinned_pool::PoolState> state_;
};

}  // namespace ebbtide
