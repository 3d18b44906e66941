// Which bytes of a file are free.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <vector>

namespace ebbtide::nvme {

/// A run of bytes in a file.
struct Extent {
  uint64_t offset = 0;
  uint64_t bytes = 0;
  bool operator==(const Extent&) const = default;
};

/// Hands out extents of one file in whole units. What was freed last is used first: the backward reads in the reverse
/// order of the forward's writes, so the newest holes are the ones whose neighbours are about to be freed too, and the
/// file stays as short as its peak.
///
/// Threads: none of its own; the owner locks.
class ExtentAllocator {
 public:
  explicit ExtentAllocator(uint64_t unit) noexcept : unit_(unit) {}

  /// `bytes` rounded up to units, in as few extents as the holes allow, in file order of being taken. None: fewer bytes
  /// are free. REQUIRES: bytes > 0.
  std::optional<std::vector<Extent>> allocate(uint64_t bytes);

  /// Gives back an extent from allocate(), or adds new room at the file's end. REQUIRES: whole units, nothing of it
  /// free.
  void free(Extent extent);

  uint64_t round_up(uint64_t bytes) const noexcept { return (bytes + unit_ - 1) / unit_ * unit_; }
  uint64_t free_bytes() const noexcept { return free_bytes_; }
  /// Runs of free bytes: how broken up the room is.
  size_t holes() const noexcept { return by_offset_.size(); }

 private:
  struct Hole {
    uint64_t bytes;
    uint64_t freed_at;  // key in by_age_
  };
  using Holes = std::map<uint64_t, Hole>;

  Extent take(Holes::iterator hole, uint64_t bytes);
  void erase(Holes::iterator hole);

  uint64_t unit_;
  uint64_t free_bytes_ = 0;
  uint64_t clock_ = 0;
  Holes by_offset_;
  std::map<uint64_t, uint64_t, std::greater<>> by_age_;  // freed_at -> offset, newest first
};

}  // namespace ebbtide::nvme
