// Which storages collectives were given.
#pragma once

#include <ebbtide/pinned_pool/export.h>

#include <c10/core/Storage.h>

namespace ebbtide {

/// From now on storages that are given to collectives of torch.distributed (c10d) are marked, on all threads: these write to
/// tensors and torch counts no version. Through kernels of c10d's own operators, so that no other op pays for it. Idempotent.
/// What reaches a backend past its process group is not seen.
/// Threads: any.
void mark_what_collectives_are_given();

/// Whether a collective was given it, be it to read.
/// Threads: any.
EBBTIDE_API bool given_to_collective(const c10::Storage& storage) noexcept;

}  // namespace ebbtide
