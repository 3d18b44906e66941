#include <ebbtide/nvme/checksum.h>
#include <ebbtide/nvme/item.h>

#include <algorithm>

namespace ebbtide::nvme {

std::vector<Segment> cut_into_segments(const Item& item, const std::vector<IoPiece>& pieces) {
  std::vector<Segment> segments;
  uint64_t at = 0;  // in the item
  size_t piece = 0, in_piece = 0;
  uint32_t extent = 0;
  uint64_t in_extent = 0;
  while (at < item.bytes) {
    if (in_piece == pieces[piece].bytes) {
      ++piece;
      in_piece = 0;
      continue;
    }
    const Extent& place = item.extents[extent].extent;
    if (in_extent == place.bytes) {
      ++extent;
      in_extent = 0;
      continue;
    }
    const uint64_t bytes = std::min({kChunkBytes - at % kChunkBytes, uint64_t{pieces[piece].bytes - in_piece},
                                     place.bytes - in_extent, item.bytes - at});
    segments.push_back({pieces[piece].data + in_piece, static_cast<uint32_t>(bytes),
                        static_cast<uint32_t>(at / kChunkBytes), extent, place.offset + in_extent});
    at += bytes;
    in_piece += bytes;
    in_extent += bytes;
  }
  return segments;
}

uint64_t chunk_checksum(const Item& item, uint32_t chunk, const std::vector<IoPiece>& pieces) {
  const uint64_t begin = chunk * kChunkBytes;
  const uint64_t end = std::min(begin + kChunkBytes, item.bytes);
  std::vector<HashedRun> runs;
  uint64_t at = 0;
  for (const IoPiece& piece : pieces) {
    const uint64_t from = std::max(begin, at), to = std::min(end, at + piece.bytes);
    if (from < to) runs.push_back({piece.data + (from - at), to - from});
    at += piece.bytes;
  }
  return checksum({item.name, item.generation, begin}, runs);
}

}  // namespace ebbtide::nvme
