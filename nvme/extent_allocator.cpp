#include <ebbtide/nvme/extent_allocator.h>

#include <algorithm>
#include <cassert>

namespace ebbtide::nvme {

std::optional<std::vector<Extent>> ExtentAllocator::allocate(uint64_t bytes) {
  assert(bytes > 0);
  bytes = round_up(bytes);
  if (bytes > free_bytes_) return std::nullopt;

  for (const auto& [freed_at, offset] : by_age_) {
    const auto hole = by_offset_.find(offset);
    if (hole->second.bytes >= bytes) return std::vector<Extent>{take(hole, bytes)};
  }

  // No hole holds it whole: the largest ones, so that the item is in few pieces.
  std::vector<Holes::iterator> holes;
  for (auto hole = by_offset_.begin(); hole != by_offset_.end(); ++hole) holes.push_back(hole);
  std::sort(holes.begin(), holes.end(), [](auto a, auto b) { return a->second.bytes > b->second.bytes; });
  std::vector<Extent> extents;
  for (auto hole : holes) {
    extents.push_back(take(hole, std::min(bytes, hole->second.bytes)));
    bytes -= extents.back().bytes;
    if (bytes == 0) break;
  }
  return extents;
}

void ExtentAllocator::free(Extent extent) {
  assert(extent.bytes > 0 && extent.offset % unit_ == 0 && extent.bytes % unit_ == 0);
  free_bytes_ += extent.bytes;
  auto next = by_offset_.lower_bound(extent.offset);
  assert(next == by_offset_.end() || extent.offset + extent.bytes <= next->first);
  if (next != by_offset_.end() && next->first == extent.offset + extent.bytes) {
    extent.bytes += next->second.bytes;
    auto merged = next++;
    erase(merged);
  }
  if (next != by_offset_.begin()) {
    auto before = std::prev(next);
    assert(before->first + before->second.bytes <= extent.offset);
    if (before->first + before->second.bytes == extent.offset) {
      extent = {before->first, before->second.bytes + extent.bytes};
      erase(before);
    }
  }
  const uint64_t freed_at = ++clock_;
  by_offset_.emplace(extent.offset, Hole{extent.bytes, freed_at});
  by_age_.emplace(freed_at, extent.offset);
}

Extent ExtentAllocator::take(Holes::iterator hole, uint64_t bytes) {
  const auto [offset, size, freed_at] = std::tuple(hole->first, hole->second.bytes, hole->second.freed_at);
  erase(hole);
  if (size > bytes) {  // the rest keeps its age
    by_offset_.emplace(offset + bytes, Hole{size - bytes, freed_at});
    by_age_.emplace(freed_at, offset + bytes);
  }
  free_bytes_ -= bytes;
  return {offset, bytes};
}

void ExtentAllocator::erase(Holes::iterator hole) {
  by_age_.erase(hole->second.freed_at);
  by_offset_.erase(hole);
}

}  // namespace ebbtide::nvme
