// The shape of a strided view's bytes: rows with gaps between them.
#pragma once

#include <ebbtide/nvme/spill_tier.h>
#include <ebbtide/pinned_pool/bytes.h>
#include <ebbtide/pinned_pool/few.h>
#include <ebbtide/transfer/copy_chunks.h>
#include <ebbtide/transfer/device.h>

#include <cstddef>
#include <cstdint>

namespace ebbtide {

/// `count` rows of `row` bytes, each `pitch` bytes after the one before it. None: the bytes lie in one run.
struct Rows {
  Bytes row;
  Bytes pitch;
  int64_t count = 0;

  bool none() const noexcept { return count == 0; }
  Bytes bytes() const noexcept { return row * count; }
  bool operator==(const Rows&) const = default;

  /// Whether a view of this shape leaves a device as its rows, packed, and not as all that lies from its first byte to
  /// its last. Rows of half a KiB at least: a copy engine fetches each by itself, and PCI Express reads up to 512 bytes
  /// at once. At most half of all: even at half the speed of a plain copy it then takes no longer, and half of the host
  /// memory. The pitch is what every CUDA device takes.
  bool pay() const noexcept {
    constexpr Bytes kLeastRow(512);
    constexpr Bytes kMostPitch((int64_t{1} << 31) - 1);
    return count > 1 && row >= kLeastRow && row * 2 <= pitch && pitch <= kMostPitch;
  }

  /// Whether these rows, from `begin` on, hold all bytes of a view that touches [inner_begin, inner_end), or `inner` of
  /// it. May say no where a closer look would say yes. REQUIRES: !none().
  bool hold(Bytes begin, Bytes inner_begin, Bytes inner_end, const Rows& inner) const noexcept;
};

/// The copies between a device's memory, from `first` on, where a record's bytes lie in one run of `bytes` or in `rows`
/// if there are any, and host memory, where they lie one behind the other.
/// REQUIRES: the pieces hold them.
CopyChunks chunks_between(std::byte* first, Bytes bytes, const Rows& rows, const Few<IoPiece>& pieces,
                          Direction direction);

}  // namespace ebbtide
