// What a spill tier is made of: its room, its lanes (one file and one queue each), and the transfers on their way.
#pragma once

#include <ebbtide/nvme/busy_time.h>
#include <ebbtide/nvme/io_queue.h>
#include <ebbtide/nvme/item.h>
#include <ebbtide/nvme/spill_space.h>
#include <ebbtide/nvme/spill_tier.h>
#include <ebbtide/nvme/write_allowance.h>

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <unordered_map>
#include <vector>

namespace ebbtide::nvme {

enum class TransferKind { kWrite, kPrefetch, kDemand };

/// An item's way out or in. Fields after `segments` are guarded by the tier's mutex.
struct Transfer {
  uint64_t id = 0;
  std::shared_ptr<Item> item;
  std::vector<IoPiece> pieces;
  std::vector<Segment> segments;

  TransferKind kind = TransferKind::kWrite;
  WriteAllowance::Clock::time_point allowed_at;  // a write: when it was taken from the day's
  SpillTier::WriteDone write_done;               // one of the two
  SpillTier::ReadDone read_done;
  std::vector<std::deque<uint32_t>> waiting;  // segments not handed to a queue yet, one list a lane
  std::vector<uint32_t> chunk_segments_left;  // how many segments each chunk still lacks
  std::vector<bool> chunk_read_again;         // its checksum was wrong once
  size_t waiting_count = 0;
  size_t in_flight = 0;
  int read_retries = 4;
  bool begun = false;
  std::optional<Failure> failure;  // the first
};

/// Shared by the SpillTier and the threads of its queues. After stop() the last of these threads destroys it.
///
/// Threads: all methods from any. Lock order: mutex_ before the space's; queues are called with neither.
class TierState : public std::enable_shared_from_this<TierState> {
 public:
  static Result<std::shared_ptr<TierState>> open(const SpillOptions& options, const QueueFactory& start_queue);
  ~TierState();
  TierState(const TierState&) = delete;
  TierState& operator=(const TierState&) = delete;

  /// As SpillTier says.
  Result<SpillTier::TransferId> write(uint64_t name, std::vector<IoPiece> pieces, SpillTier::WriteDone done);
  SpillTier::TransferId read(const SpilledItem& spilled, std::vector<IoPiece> pieces, SpillTier::Priority priority,
                             SpillTier::ReadDone done);
  void raise_priority(uint64_t id);
  void cancel(uint64_t id);
  SpillStats stats() const;
  Bytes bytes() const noexcept { return space_->bytes(); }
  void use_memory(std::byte* data, size_t bytes) noexcept;
  void forget_memory(const std::byte* data, size_t bytes) noexcept;

  /// Refuses later transfers, withdraws those that have not begun, lets the rest end; then the threads end. Never
  /// waits.
  void stop() noexcept;
  /// Refuses later transfers, waits for all accepted ones; then the threads end.
  void close();

  IoAlignment alignment() const noexcept { return space_->alignment(); }
  const SpillSpace& space() const noexcept { return *space_; }
  static const Item& item_of(const SpilledItem& spilled) noexcept { return *spilled.item_; }

 private:
  using Clock = std::chrono::steady_clock;

  /// One file: its queue, and which transfers still have segments for it.
  struct Lane final : IoSource {
    Lane(TierState& tier, uint32_t number) noexcept : state(tier), index(number) {}
    Next next(IoRequest& request) noexcept override { return state.next(*this, request); }
    void completed(const IoRequest& request, int error) noexcept override { state.completed(*this, request, error); }

    TierState& state;  // owns this
    const uint32_t index;
    std::unique_ptr<IoQueue> queue;  // set by open(), before any transfer
    // Guarded by the tier's mutex.
    std::deque<uint64_t> demand, writes, prefetches;  // transfers with segments waiting for this lane
    bool writes_turn = false;                         // writes and prefetches take turns
    bool asleep = false;                              // next() said kNothing: wants to be notified
    int in_flight = 0;
    int writes_in_flight = 0;
    int few_writes = 0;          // so many to come go two at a time, since demand reads come
    Clock::time_point heard_at;  // when a request ended, or began where none was in flight
    int64_t written = 0, read = 0;
    BusyTime write_busy, read_busy;
    int64_t written_at_measure = 0;  // the last time that its speed was told to the space
    double busy_at_measure = 0;
  };

  TierState(std::shared_ptr<SpillSpace> space, const SpillOptions& options);

  std::optional<Failure> objection(const std::vector<IoPiece>& pieces) const;
  uint64_t enqueue(std::unique_ptr<Transfer>& transfer);

  // serving.cpp
  IoSource::Next next(Lane& lane, IoRequest& request) noexcept;
  void completed(Lane& lane, const IoRequest& request, int error) noexcept;
  void measure_locked(Lane& lane) noexcept;
  void segment_arrived(std::unique_lock<std::mutex>& lock, Transfer& transfer, const Segment& segment) noexcept;
  void segment_failed_locked(Transfer& transfer, uint32_t index, int error) noexcept;
  void wait_again_locked(Transfer& transfer, uint32_t index) noexcept;
  void fail_locked(Transfer& transfer, Failure failure) noexcept;
  void finish(std::unique_lock<std::mutex>& lock, Transfer& transfer) noexcept;

  // lines.cpp
  std::deque<uint64_t>& line_of(Lane& lane, TransferKind kind) noexcept;
  Transfer* front_locked(Lane& lane) noexcept;
  bool may_write_locked(const Lane& lane) const noexcept;
  void put_in_line_locked(Transfer& transfer) noexcept;
  void leave_lines_locked(Transfer& transfer) noexcept;
  /// Wakes lanes that sleep; unlocks.
  void wake(std::unique_lock<std::mutex>& lock) noexcept;

  const std::shared_ptr<SpillSpace> space_;
  const bool checksum_;
  std::vector<std::unique_ptr<Lane>> lanes_;
  std::string description_;
  bool io_uring_ = false;

  mutable std::mutex mutex_;  // guards what follows, and the lanes' and transfers' fields that say so
  std::condition_variable all_done_;
  std::unordered_map<uint64_t, std::unique_ptr<Transfer>> transfers_;  // accepted, `done` not called and destroyed yet
  std::deque<uint64_t> withdrawn_;  // by stop(): wait for an I/O thread to tell their callers
  bool refusing_ = false;
  bool stopped_ = false;
  uint64_t last_id_ = 0;
  uint64_t last_generation_ = 0;
  int64_t written_ = 0;
  int64_t read_ = 0;
  int64_t errors_ = 0;
  WriteAllowance allowance_;
  BusyTime write_busy_;
  BusyTime read_busy_;
};

}  // namespace ebbtide::nvme
