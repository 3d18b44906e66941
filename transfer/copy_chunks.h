// The pieces of one copy job.
#pragma once

#include <ebbtide/pinned_pool/few.h>

#include <cstddef>

namespace ebbtide {

struct CopyChunk {
  void* to = nullptr;
  const void* from = nullptr;
  size_t bytes = 0;
};

/// Most tensors are one.
using CopyChunks = Few<CopyChunk>;

}  // namespace ebbtide
