// Checksums of what rests on disk.
#pragma once

#include <ebbtide/nvme/xxh3.h>

#include <cstdint>
#include <span>

namespace ebbtide::nvme {

/// Which bytes a checksum speaks for. Folded into the sum, so that right bytes in the wrong place (an extent used
/// again, a chunk of another item) do not pass.
struct ChunkIdentity {
  uint64_t name = 0;        ///< as the caller named the item
  uint64_t generation = 0;  ///< counts the tier's writes
  uint64_t offset = 0;      ///< of the chunk in the item
};

/// XXH3-64 of `runs`, one after another, as if they lay in one piece: how memory is cut up does not change the sum.
uint64_t checksum(const ChunkIdentity& identity, std::span<const HashedRun> runs) noexcept;

}  // namespace ebbtide::nvme
