// How fast a link has been lately, by size of the transfer, alone and with traffic the other way.
#pragma once

#include <ebbtide/pinned_pool/bytes.h>

#include <array>
#include <cstddef>
#include <optional>

namespace ebbtide {

enum class LinkUse { kAlone, kDuplex };  ///< nothing, or something, moves the other way at the same time

/// An exponentially weighted mean a size class: small transfers pay a fixed cost, so that one figure for all would
/// mislead a planner. A pure value. Threads: one at a time.
class Bandwidth {
 public:
  /// Classes by powers of four: up to 64 KiB, 256 KiB, ... 64 MiB, and larger.
  static constexpr size_t kClasses = 7;
  static constexpr size_t size_class(Bytes bytes) noexcept {
    size_t size_class = 0;
    for (int64_t top = 64 << 10; size_class + 1 < kClasses && bytes.count() > top; top *= 4) ++size_class;
    return size_class;
  }

  /// Takes in one transfer. Ignores those without bytes or without duration: they say nothing.
  void add(Bytes bytes, double seconds, LinkUse use) noexcept { add(bytes, bytes, seconds, use); }
  /// Of transfers of this size one after the other, or of a part of one, `moved` bytes took so long.
  void add(Bytes transfer, Bytes moved, double seconds, LinkUse use) noexcept;

  /// Bytes a second for transfers of this size: the class's own mean, else that of the nearest class measured (the
  /// larger of two as near), else that of the other use; none before the first transfer.
  std::optional<double> bytes_per_second(Bytes bytes, LinkUse use) const noexcept;
  /// Of large transfers of any size together, each counting by its bytes: what a link gives where bytes alone matter. None
  /// before the first of a mebibyte.
  std::optional<double> large(LinkUse use) const noexcept;
  /// Whether any transfer of this use was taken in.
  bool measured(LinkUse use) const noexcept { return nearest(means_[static_cast<size_t>(use)], 0) > 0; }

 private:
  using Means = std::array<double, kClasses>;  // 0: not measured
  Means& means(LinkUse use) noexcept { return means_[static_cast<size_t>(use)]; }
  static double nearest(const Means& means, size_t size_class) noexcept;

  std::array<Means, 2> means_{};
  std::array<double, 2> large_{};  // seconds a byte; 0: not measured
};

/// Of both directions of a device's link.
struct LinkBandwidth {
  Bandwidth out, in;
};

}  // namespace ebbtide
