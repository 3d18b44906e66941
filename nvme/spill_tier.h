// The NVMe tier: items written to spill files and read back, each in one piece, each checked.
#pragma once

#include <ebbtide/pinned_pool/bytes.h>
#include <ebbtide/pinned_pool/result.h>
#include <ebbtide/pinned_pool/slab_watcher.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace ebbtide {

struct SpillOptions {
  std::vector<std::string> folders;  ///< at least one; several are striped over
  std::optional<Bytes> budget;       ///< none: 90% of the free space
  /// Left free for others on each file system. None: 1/32 of it, 1 GiB at most.
  std::optional<Bytes> reserve;
  std::optional<Bytes> most_written_a_day;  ///< in any 24 hours, since disks wear out; none: as much as there is
  bool checksum = true;
  bool allow_io_uring = true;            ///< false: the thread queue, as where io_uring is forbidden
  std::optional<Bytes> bytes_in_flight;  ///< none: 16 MiB a folder
};

/// What direct I/O wants of a piece of memory.
struct IoAlignment {
  size_t memory = 512;  ///< addresses are multiples of it
  size_t length = 512;  ///< lengths are multiples of it
};

/// Memory that a transfer reads or writes. `data` and `bytes` follow the tier's IoAlignment.
struct IoPiece {
  std::byte* data = nullptr;
  size_t bytes = 0;
};

namespace nvme {
class TierState;
struct Item;
}  // namespace nvme

/// Bytes that rest in the tier. Shared by whoever may read them.
/// Lifetime: the last handle's death frees the extents, after transfers in flight have ended; never waits. May outlive
/// the tier.
class SpilledItem {
 public:
  SpilledItem() noexcept = default;
  explicit operator bool() const noexcept { return item_ != nullptr; }
  Bytes size() const noexcept;

 private:
  friend class SpillTier;
  friend class nvme::TierState;
  explicit SpilledItem(std::shared_ptr<nvme::Item> item) noexcept : item_(std::move(item)) {}
  std::shared_ptr<nvme::Item> item_;
};

/// What one folder did over the tier's life.
struct SpillFolderStats {
  std::string folder;
  Bytes written;
  Bytes read;
  double write_busy_s = 0;  ///< seconds in which at least one write was in flight there
  double read_busy_s = 0;
  double share = 0;     ///< of what is written, as long as there is room: by size at first, then by measured speed
  double silent_s = 0;  ///< seconds since a transfer ended there, or began where none was in flight; 0: none is now
};

struct SpillStats {
  Bytes bytes;  ///< resting in the tier now (extents in use)
  Bytes peak_bytes;
  Bytes budget;
  Bytes quarantined;  ///< extents in which a transfer failed: not used again, and gone from the budget
  Bytes written;      ///< over the tier's life
  Bytes read;
  double write_busy_s = 0;  ///< seconds in which at least one write was in flight
  double read_busy_s = 0;
  int64_t errors = 0;
  bool io_uring = false;
  Bytes registered;         ///< of the memory that watcher() was told of, once for each folder
  bool ram = false;         ///< a folder lies in memory (tmpfs): it spills nowhere
  std::string description;  ///< one line: folders, file system, queue, alignment, and why not io_uring
  std::vector<SpillFolderStats> folders;
};

/// Threads: all methods from any; none waits for a disk but close(). Completions run on an I/O thread of the tier, or
/// inside the cancel() or the refused read() that ends the transfer, with no lock of the tier's held; they must be short
/// and must not destroy the tier's last reference to a caller's object that blocks.
class SpillTier {
 public:
  enum class Priority { kPrefetch, kDemand };  ///< a demand read overtakes queued writes and prefetches
  using WriteDone = std::function<void(Result<SpilledItem>)>;
  using ReadDone = std::function<void(Status)>;
  using TransferId = uint64_t;

  /// Errors: kInvalid (no folder, not a folder), kNoSpace, kIo, each with folder and errno.
  static Result<std::unique_ptr<SpillTier>> open(SpillOptions options);
  ~SpillTier();  ///< refuses what comes later; transfers in flight end by themselves; never waits

  IoAlignment alignment() const noexcept;

  /// Writes `pieces`, one after another, as one item. `done` gets the item once it can be read back, or why it failed
  /// (kNoSpace, kIo, kCancelled): the bytes in memory are untouched either way. The memory must stay valid and
  /// unchanged until `done` has been called. `name` is folded into the checksum, so that a stale extent can never pass
  /// for this item. Errors: kNoSpace at once, `done` is then never called.
  Result<TransferId> write(uint64_t name, std::vector<IoPiece> pieces, WriteDone done);

  /// Fills `pieces` (same total size as written) and verifies. `done` gets success, kIo (file, offset and errno in the
  /// message) or kCorrupt; the memory then holds nothing to rely on. A refused read (closed tier: kCancelled, forked
  /// child: kUnsupported, wrong size, alignment or tier: kInvalid) calls `done` before it returns, and returns 0.
  TransferId read(const SpilledItem& item, std::vector<IoPiece> pieces, Priority priority, ReadDone done);

  /// A read that is queued as a prefetch becomes a demand read.
  void raise_priority(TransferId id);

  /// Withdraws a transfer that has not begun: its `done` gets kCancelled before this returns, also while the disk hangs,
  /// and its room is free. One that has begun runs to its end. Unknown ids are ignored. REQUIRES: the caller holds no
  /// lock that `done` takes.
  void cancel(TransferId id);

  SpillStats stats() const;
  /// SpillStats::bytes alone.
  Bytes bytes() const noexcept;

  /// For pools whose blocks the tier is to write and read: what io_uring has registered costs a third less of the
  /// processor. May outlive the tier. Memory must be gone from it before it may be mapped again elsewhere.
  std::shared_ptr<SlabWatcher> watcher() const;

  /// Waits until nothing is in flight; later transfers are refused. Not from a completion: it would wait for itself.
  void close();

 private:
  explicit SpillTier(std::shared_ptr<nvme::TierState> state);
  std::shared_ptr<nvme::TierState> state_;
};

}  // namespace ebbtide
