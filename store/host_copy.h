// Host memory in which one record's bytes lie while they are off their device.
#pragma once

#include <ebbtide/nvme/spill_tier.h>
#include <ebbtide/pinned_pool/few.h>
#include <ebbtide/pinned_pool/host_registrar.h>
#include <ebbtide/pinned_pool/pool.h>
#include <ebbtide/transfer/block_cache.h>

#include <cstddef>
#include <memory>

namespace ebbtide {

/// Lifetime: shared by the record and by every transfer that touches it; the memory is reused as soon as the last lets
/// go. Destroyed on any thread, never waits.
class HostCopy {
  class Made {};  // only make() makes them

 public:
  enum class From {
    kReadyPool,     ///< memory that the pool has ready: no system call
    kPool,          ///< the pool may grow
    kPoolOrSystem,  ///< and where it has no room, the system serves
  };
  /// On `node`, or on another where that is full. Null where there is no room. The system's memory is pinned by `registrar`, for a copy from pageable memory is
  /// waited for by whoever enqueues it.
  static std::shared_ptr<HostCopy> make(const CachedAllocator<HostCopy>& objects, PinnedPool& pool, Bytes bytes,
                                        NumaNode node, From from,
                                        const std::shared_ptr<HostRegistrar>& registrar = nullptr);
  explicit HostCopy(Made) noexcept {}
  ~HostCopy();

  Bytes bytes() const noexcept { return bytes_; }
  /// What the pool counts of it as live: whole pages, or nothing where the system served.
  Bytes bytes_of_pool() const noexcept { return block_.size(); }
  /// Of the bytes that it holds now; for verify.
  uint64_t fingerprint() const;
  /// All of it, in whole pages: what direct I/O wants. The end of the last page means nothing.
  const Few<IoPiece>& pieces() const noexcept { return pieces_; }

 private:
  Block block_;
  std::unique_ptr<std::byte, void (*)(void*)> heap_{nullptr, nullptr};
  std::shared_ptr<HostRegistrar> pinned_by_;  // heap_, where it could be pinned
  Few<IoPiece> pieces_;
  Bytes bytes_;
};

}  // namespace ebbtide
