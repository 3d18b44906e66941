#include <ebbtide/nvme/disk_runs.h>

#include <linux/fiemap.h>
#include <linux/fs.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <limits>

namespace ebbtide::nvme {

uint32_t DiskRuns::write_at_once(uint64_t offset, uint32_t bytes) noexcept {
  const uint64_t end = offset + bytes;
  if (end > known_to_) look_further(end);
  const auto seam = std::upper_bound(seams_.begin(), seams_.end(), offset);
  if (seam == seams_.end() || *seam >= end) return bytes;
  if (const auto next = seam + 1; next != seams_.end() && *next < end) return bytes;
  const auto before = static_cast<uint32_t>(*seam - offset);
  return before % length_alignment_ == 0 ? before : bytes;
}

/// Until `end` is known. Where the file system does not answer, it is not asked again.
void DiskRuns::look_further(uint64_t end) noexcept {
  constexpr unsigned kAtOnce = 32;
  alignas(fiemap) std::array<std::byte, sizeof(fiemap) + kAtOnce * sizeof(fiemap_extent)> room;
  auto* answer = reinterpret_cast<fiemap*>(room.data());
  while (known_to_ < end) {
    *answer = {};
    answer->fm_start = known_to_;
    answer->fm_length = std::numeric_limits<uint64_t>::max() - known_to_;
    answer->fm_extent_count = kAtOnce;
    if (::ioctl(fd_, FS_IOC_FIEMAP, answer) != 0 || answer->fm_mapped_extents == 0) {
      known_to_ = std::numeric_limits<uint64_t>::max();
      return;
    }
    for (unsigned i = 0; i < answer->fm_mapped_extents; ++i) {
      const fiemap_extent& extent = answer->fm_extents[i];
      const uint64_t skipped = std::max<uint64_t>(known_to_, extent.fe_logical) - extent.fe_logical;  // was known before
      if (known_to_ > 0 && extent.fe_physical + skipped != next_on_disk_) seams_.push_back(extent.fe_logical + skipped);
      known_to_ = extent.fe_logical + extent.fe_length;
      next_on_disk_ = extent.fe_physical + extent.fe_length;
    }
  }
}

}  // namespace ebbtide::nvme
