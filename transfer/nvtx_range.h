// What the store does for accelerators, on the timelines of NVIDIA's tools.
#pragma once

#include <ebbtide/pinned_pool/bytes.h>

namespace ebbtide {

/// A range on the calling thread's timeline while it lives: of NVTX's domain "ebbtide", named by what it is, with the
/// bytes as its payload (packs and unpacks: of the storage). Nsight Systems shows it (nsys profile --trace=cuda,nvtx). Where no tool listens, and in builds
/// that found no nvtx3/nvToolsExt.h, it does nothing; nothing is linked either way.
/// Threads: ends on the thread that it began on; ranges nest.
class NvtxRange {
 public:
  enum class Of {
    kPack,
    kUnpack,
    kLeave,   ///< a copy off the device is made ready and enqueued
    kReturn,  ///< the same of one back to it, its memory included
  };
  NvtxRange(Of of, Bytes bytes) noexcept;
  ~NvtxRange();
  NvtxRange(const NvtxRange&) = delete;
  NvtxRange& operator=(const NvtxRange&) = delete;
};

}  // namespace ebbtide
