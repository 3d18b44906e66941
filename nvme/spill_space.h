// The room of a tier: its files, how far they may grow, and who has which bytes.
#pragma once

#include <ebbtide/nvme/extent_allocator.h>
#include <ebbtide/nvme/spill_file.h>
#include <ebbtide/nvme/spill_tier.h>

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

namespace ebbtide::nvme {

/// Items are cut into chunks of this size: one checksum and (unless memory or file are broken up) one request each.
inline constexpr uint64_t kChunkBytes = uint64_t{1} << 20;

/// An extent and the file it is in.
struct PlacedExtent {
  uint32_t file = 0;
  Extent extent;
  bool bad = false;  ///< a transfer failed here: never handed out again
};

/// Threads: all methods from any; a leaf lock, never held across a system call (growing has a lock of its own).
/// Lifetime: shared by the tier and its items; the tier's end closes the files, the book-keeping lives until the last
/// item is gone.
class SpillSpace {
 public:
  /// Errors: those of SpillFile::open; kInvalid without folders; kNoSpace where not one item could be kept.
  static Result<std::shared_ptr<SpillSpace>> open(const SpillOptions& options);

  /// Room for an item, spread over the files by their shares: each gets a run of whole chunks, so that one item is moved
  /// by all devices at once, and a slow one holds nobody up. A file without room leaves its share to the others. Grows the files when needed (milliseconds). Errors: kNoSpace with the numbers and what to raise.
  Result<std::vector<PlacedExtent>> allocate(uint64_t bytes);

  /// Gives extents back, but those marked bad. In a forked child it does nothing: the parent's extents are not the
  /// child's to free.
  void release(const std::vector<PlacedExtent>& extents) noexcept;

  /// How fast a file takes writes, in bytes a second: the mean of what is told goes into its share, once each file's is
  /// known. Until then a file's share is that of its free space.
  void note_speed(size_t index, double bytes_per_second) noexcept;
  /// Of the files, together 1.
  std::vector<double> shares() const;

  /// Closes the files. REQUIRES: no transfer in flight, no allocate() afterwards.
  void close_files() noexcept { files_.clear(); }

  size_t file_count() const noexcept { return files_.size(); }
  const SpillFile& file(size_t index) const noexcept { return files_[index]; }
  IoAlignment alignment() const noexcept { return alignment_; }
  bool ram() const noexcept;
  /// True in a child of the process that opened the tier.
  bool forked() const noexcept;
  Bytes bytes() const noexcept;  ///< in use; 0 in a forked child
  /// Fills bytes, peak_bytes, budget, quarantined.
  void report(SpillStats& stats) const;

 private:
  SpillSpace(std::vector<SpillFile> files, IoAlignment alignment, uint64_t budget, std::optional<Bytes> reserve);

  using Clock = std::chrono::steady_clock;
  struct Room {
    ExtentAllocator allocator;
    uint64_t size = 0;           // of the file, as the allocator knows it
    Clock::time_point retry_at;  // after a failed growth: not before
    double free_space = 1;       // when it was opened
    double speed = 0;            // bytes a second; 0: not known yet
    double share = 1;            // of what is written, together 1
    double due = 0;              // bytes by which it has had less than its share
  };
  enum class Spread {
    kByShare,     ///< as the shares say, or not at all
    kAsRoomGoes,  ///< what does not fit goes wherever there is room
  };

  std::vector<uint64_t> wanted_locked(uint64_t bytes) const;
  std::optional<std::vector<PlacedExtent>> take_locked(uint64_t bytes, Spread spread);
  Status grow(uint64_t bytes);
  uint64_t may_grow(const SpillFile& file) const;
  void set_shares_locked() noexcept;

  std::vector<SpillFile> files_;  // grown under grow_mutex_
  const IoAlignment alignment_;
  const uint64_t unit_;
  const uint64_t budget_;
  const std::optional<Bytes> reserve_;
  const pid_t owner_;

  std::mutex grow_mutex_;     // held across fallocate, taken before mutex_
  mutable std::mutex mutex_;  // guards what follows
  std::vector<Room> rooms_;   // one a file
  uint64_t used_ = 0;
  uint64_t peak_ = 0;
  uint64_t quarantined_ = 0;
};

}  // namespace ebbtide::nvme
