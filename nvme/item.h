// An item that rests in a spill tier, and the requests that move it.
#pragma once

#include <ebbtide/nvme/spill_space.h>
#include <ebbtide/nvme/spill_tier.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

namespace ebbtide::nvme {

/// One item at rest. Written once by the tier before anybody else sees it.
/// Lifetime: the last reference gives the extents back; transfers hold one each, so never under a transfer.
struct Item {
  Item(std::shared_ptr<SpillSpace> in, uint64_t called, uint64_t count)
      : space(std::move(in)), name(called), bytes(count) {}
  Item(const Item&) = delete;
  Item& operator=(const Item&) = delete;
  ~Item() { space->release(extents); }

  const std::shared_ptr<SpillSpace> space;
  const uint64_t name;
  const uint64_t bytes;
  uint64_t generation = 0;
  std::vector<PlacedExtent> extents;  // together `bytes`, rounded up, in the item's order
  std::vector<uint64_t> checksums;    // one a chunk; empty where checksums are off
};

/// A part of a transfer that is one request: a run of memory and a run of a file, inside one chunk.
struct Segment {
  std::byte* data;
  uint32_t bytes;
  uint32_t chunk;   // of the item
  uint32_t extent;  // of the item
  uint64_t offset;  // in the extent's file
};

/// Cuts an item into segments. REQUIRES: the pieces hold the item's bytes.
std::vector<Segment> cut_into_segments(const Item& item, const std::vector<IoPiece>& pieces);

/// The checksum of one chunk as it lies in memory. REQUIRES: the same.
uint64_t chunk_checksum(const Item& item, uint32_t chunk, const std::vector<IoPiece>& pieces);

}  // namespace ebbtide::nvme
