// Where a file lies on its disk in one piece, and where it does not.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace ebbtide::nvme {

/// A file that was preallocated in several goes, or on a disk with little room in one piece, is a few runs on the disk.
/// ext4 and XFS do not begin a write across the seam of two runs without waiting: io_uring then hands it to a worker
/// thread, and those that follow too as long as that one holds the file. So a write ends at the seam, and its rest is
/// the next attempt.
///
/// A hint: what the file system does not say, or has changed since, costs time and nothing else.
///
/// Threads: one. Lifetime: the descriptor's owner keeps it open.
class DiskRuns {
 public:
  DiskRuns(int fd, size_t length_alignment) noexcept : fd_(fd), length_alignment_(length_alignment) {}

  /// How many of these bytes of the file to write at once. All where no seam is known to lie between them. All where
  /// several do: on so broken-up a disk, many small writes would cost more than a worker.
  uint32_t write_at_once(uint64_t offset, uint32_t bytes) noexcept;

 private:
  void look_further(uint64_t end) noexcept;

  int fd_;
  size_t length_alignment_;
  uint64_t known_to_ = 0;        // file offset
  uint64_t next_on_disk_ = 0;    // where the run would go on that ends at known_to_
  std::vector<uint64_t> seams_;  // file offsets, in order
};

}  // namespace ebbtide::nvme
