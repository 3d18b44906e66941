// Pinning of host memory, as the pool sees it.
#pragma once

#include <ebbtide/pinned_pool/result.h>

#include <cstddef>

namespace ebbtide {

/// How slabs are pinned for DMA. Injected, since only `transfer` knows devices.
/// Threads: called from any, one call at a time for a pool, under no lock that a Block's destructor takes or an
/// acquire() that need not grow.
class HostRegistrar {
 public:
  virtual ~HostRegistrar() = default;
  /// `data` is aligned to 2 MiB and its pages are present. Errors: any; it is then tried by halves, and what stays
  /// refused is used as pageable memory, and the pool's statistics say why. unpin() gets what pin() got.
  virtual Status pin(void* data, size_t bytes) noexcept = 0;
  virtual void unpin(void* data, size_t bytes) noexcept = 0;
};

}  // namespace ebbtide
