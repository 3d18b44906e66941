// The pieces of one copy job.
#pragma once

#include <ebbtide/pinned_pool/few.h>

#include <cstddef>

namespace ebbtide {

/// A run of bytes, or rows with gaps on one side, or on both.
struct CopyChunk {
  void* to = nullptr;
  const void* from = nullptr;
  size_t bytes = 0;  ///< of one row
  size_t rows = 1;
  size_t to_pitch = 0;  ///< of several rows, see CopyRows
  size_t from_pitch = 0;

  size_t total_bytes() const noexcept { return bytes * rows; }
};

/// Most tensors are one.
using CopyChunks = Few<CopyChunk>;

}  // namespace ebbtide
