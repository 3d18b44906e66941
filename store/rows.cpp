#include <ebbtide/store/rows.h>

#include <algorithm>

namespace ebbtide {
namespace {

/// So that a lane can enqueue a large tensor's copies bit by bit.
constexpr size_t kLargestChunk = size_t{16} << 20;

}  // namespace

bool Rows::hold(Bytes begin, Bytes inner_begin, Bytes inner_end, const Rows& inner) const noexcept {
  const int64_t at = (inner_begin - begin).count();
  if (at < 0) return false;
  const int64_t index = at / pitch.count();
  const Bytes column(at % pitch.count());
  const bool row_by_row = !inner.none() && inner.pitch.count() % pitch.count() == 0;
  const Bytes width = row_by_row ? inner.row : inner_end - inner_begin;
  const int64_t last = row_by_row ? index + (inner.count - 1) * (inner.pitch.count() / pitch.count()) : index;
  return column + width <= row && last < count;
}

CopyChunks chunks_between(std::byte* first, Bytes bytes, const Rows& rows, const Few<IoPiece>& pieces,
                          Direction direction) {
  const auto row = static_cast<size_t>((rows.none() ? bytes : rows.row).count());
  const auto pitch = static_cast<size_t>(rows.pitch.count());
  auto left = static_cast<size_t>((rows.none() ? bytes : rows.bytes()).count());
  CopyChunks chunks;
  size_t index = 0, in_row = 0;  // of what is copied next
  for (const IoPiece& piece : pieces) {
    std::byte* host = piece.data;
    for (size_t room = std::min(piece.bytes, left); room > 0;) {
      const bool whole = in_row == 0 && room >= row && row <= kLargestChunk;
      const size_t count = whole ? std::min(room, kLargestChunk) / row : 1;
      const size_t width = whole ? row : std::min({row - in_row, room, kLargestChunk});
      std::byte* const device = first + index * pitch + in_row;
      if (direction == Direction::kOut)
        chunks.push_back({host, device, width, count, row, pitch});
      else
        chunks.push_back({device, host, width, count, pitch, row});
      in_row = whole ? 0 : (in_row + width) % row;
      if (in_row == 0) index += count;
      host += width * count;
      room -= width * count;
      left -= width * count;
    }
  }
  return chunks;
}

}  // namespace ebbtide
