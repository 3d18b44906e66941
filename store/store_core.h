// The heart of the store: what hooks pack into, unpack from, and keep alive.
#pragma once

#include <ebbtide/nvme/spill_tier.h>
#include <ebbtide/pinned_pool/export.h>
#include <ebbtide/pinned_pool/pool.h>
#include <ebbtide/store/device_tier.h>
#include <ebbtide/store/options.h>
#include <ebbtide/store/pass.h>
#include <ebbtide/store/record.h>
#include <ebbtide/store/stats.h>
#include <ebbtide/store/waiter.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

namespace ebbtide {

/// Called on a caller's thread, never under a lock; each warning once.
using WarningHandler = std::function<void(const std::string&)>;

/// Ownership: Core <- records <- hooks, and Core <- memory that comes back or was handed out. `Store` is a handle on it.
/// Writes in flight hold their buffers and a weak reference.
/// Threads: every method from any thread. Those that may wait say so; they wait without the lock, and through the
/// Waiter.
/// Lock: one mutex guards all that is not atomic. Nothing of the framework, no transfer and no callback runs under it;
/// what a call finds to do is collected in a Work and done after letting go. Lock order: store < lane < pool.
class EBBTIDE_API StoreCore : public std::enable_shared_from_this<StoreCore> {
 public:
  /// Opens the tiers.
  /// Errors: ConfigError.
  static std::shared_ptr<StoreCore> open(const Options& options);
  ~StoreCore();

  /// A view that autograd saves, as bytes of a storage.
  struct View {
    const void* storage =
        nullptr;  ///< identity of the framework's storage, which the caller keeps alive during the call
    const void* version_counter = nullptr;  ///< identity; kept alive by whoever keeps the record
    uint32_t version = 0;
    Bytes begin, end;  ///< first byte and one past the last that the view touches, as offsets in the storage
    Bytes footprint;   ///< of the whole storage
  };
  struct Packed {
    std::shared_ptr<Record> record;
    /// Offset of the view's storage in the one that was saved first: not 0 for memory that came back and is saved
    /// again.
    Bytes origin;
  };
  /// Makes the reference that the store keeps. Called at most once, under the lock: it may count references, and no
  /// more.
  using Hold = std::function<std::shared_ptr<DeviceStorage>()>;

  /// Takes a view into the pass: its record, new or shared with earlier views of the same bytes. Then lets earlier
  /// records leave, as the budget asks. `pass` is opened anew where it is null or takes no more packs. May wait for
  /// room.
  /// Errors: OutOfBudget.
  Packed pack(std::shared_ptr<Pass>& pass, const View& view, const Hold& hold);
  void note_passed_through(const char* reason, Bytes footprint);

  /// What unpack hands out: a storage that lives, or memory that the caller lays a storage over and offers to adopt().
  struct Unpacked {
    std::shared_ptr<DeviceStorage> storage;
    std::shared_ptr<ReturnedMemory> memory;
    Bytes origin;  ///< offset, in the storage that was saved, of the first byte of this one
  };
  /// May wait for the record to come back.
  /// Errors: SpillError, CorruptTensor, OutOfBudget.
  Unpacked unpack(Record& record);
  /// The storage over `memory` to use from now on: `mine`, or another thread's that was first.
  std::shared_ptr<DeviceStorage> adopt(Record& record, const std::shared_ptr<ReturnedMemory>& memory,
                                       std::shared_ptr<DeviceStorage> mine);

  /// True if this graph task unpacks from the record's pass for the first time: the caller then sees to it that
  /// task_ended is called.
  bool task_began(Record& record, int task);
  void task_ended(Pass& pass, int task) noexcept;
  /// The scope of the pass ends: nothing is added to it any more, and all of it may leave. May wait for room.
  /// Errors: OutOfBudget.
  void scope_ended(const std::shared_ptr<Pass>& pass);
  /// Packs are refused from now on (see accepts_packs): the handle is gone or closed.
  void refuse_packs() noexcept { accepts_packs_ = false; }
  bool accepts_packs() const noexcept { return accepts_packs_; }
  /// Brings every live record home, waits for what is in flight, ends the spill tier. Idempotent.
  void close();
  bool closed() const noexcept { return closed_; }

  Bytes min_bytes() const noexcept { return min_bytes_; }
  Bytes trim();
  Stats stats() const;
  PassStats last_pass() const;
  std::string report() const;

  void set_warning_handler(WarningHandler handler);
  void set_waiter(std::shared_ptr<Waiter> waiter);

  /// What the hooks keep a store, made by `make` when first asked for.
  /// Threads: any.
  std::shared_ptr<void> extension(const std::function<std::shared_ptr<void>()>& make);

  void note_handed_over(Bytes change) noexcept { handed_over_ += change.count(); }

  /// Around a fork: a child must not inherit the lock from a thread that it does not have.
  void lock_for_fork() { mutex_.lock(); }
  void unlock_after_fork() { mutex_.unlock(); }

 private:
  friend class Record;
  class Work;
  enum class Urgency { kPrefetch, kDemand };

  explicit StoreCore(Options options);

  // leaving.cpp: from resident memory down. May wait; REQUIRES: the lock is not held.
  void settle(Pass* pass);
  Bytes dirty_limit_locked(const Pass* pass) const noexcept;
  void look_again_locked(int64_t at_most);
  void begin_leaving_locked(Pass* pass, Work& work);
  void drop_clean_locked(Work& work);
  void drop_locked(Resident& resident, Work& work);
  bool may_leave_locked() noexcept;
  void note_full_locked();
  std::string why_nothing_leaves_locked() const;
  void write(const std::shared_ptr<Record>& record, const std::shared_ptr<DeviceStorage>& storage,
             const std::shared_ptr<ReturnedMemory>& memory);
  void write_done(uint64_t record_id, Result<SpilledItem> item, std::shared_ptr<DeviceStorage> storage);
  void write_failed_locked(Record& record, const Failure& failure);

  // returning.cpp: from below into resident memory.
  void begin_return_locked(Record& record, Urgency urgency, Work& work);
  void prefetch_locked(Pass& pass, Work& work);
  void read(const std::shared_ptr<Record>& record, Urgency urgency);
  void read_done(uint64_t record_id, const Status& status);
  void check_fingerprint(const Record& record, const std::byte* data) const;

  /// The record whose transfer has ended; null if it died meanwhile.
  Record* arrived_locked(uint64_t record_id) noexcept;

  void forget(Record& record) noexcept;
  void detach_locked(Record& record, Work& work);
  void place_locked(Resident& resident) noexcept;
  static DeviceTier::Place place_by_states(const Resident& resident) noexcept;
  Resident* pick_victim_locked() noexcept;
  void end_pass_locked(Pass& pass) noexcept;
  void warn_once_locked(const std::string& key, std::string text);
  void deliver_warnings();
  void wait(std::unique_lock<std::mutex>& lock, Pass* stalled, const std::function<bool()>& done);

  const Options options_;
  Bytes min_bytes_;
  Bytes staging_budget_;
  std::unique_ptr<PinnedPool> pool_;
  std::unique_ptr<SpillTier> spill_;  // null without a folder
  std::atomic<bool> accepts_packs_{true};
  std::atomic<bool> closed_{false};
  std::atomic<int64_t> handed_over_{0};

  mutable std::mutex mutex_;
  std::condition_variable changed_;  // some transfer has ended
  DeviceTier host_;                  // CPU tensors: the host device is the only one yet that the hooks hand over
  std::unordered_map<const void*, Resident*> by_storage_;
  IntrusiveList<Record> live_;
  // Records with a transfer under way, for its completion: an owning reference there could make an I/O thread the one
  // to end a record.
  std::unordered_map<uint64_t, Record*> under_way_;
  uint64_t next_record_ = 1;
  int64_t next_pass_ = 1;
  std::optional<Bytes>
      full_at_;  // what the spill tier held when it had no room; asked again when it holds less, or later
  std::chrono::steady_clock::time_point full_until_;
  bool staging_full_ = false;  // until returned memory dies
  int64_t write_errors_ = 0;   // in a row
  std::string last_write_error_;
  std::vector<std::shared_ptr<DeviceStorage>> buried_;  // of writes that ended: dropped on the next caller's thread
  std::vector<std::string> warnings_;                   // for the next caller's thread
  std::vector<std::string> warned_;
  WarningHandler warning_handler_;
  std::shared_ptr<Waiter> waiter_;
  std::shared_ptr<void> extension_;
  Stats stats_;  // the counters; tiers and links are read when asked
  std::map<const char*, Count> passed_through_;
  PassStats last_pass_;
  Bytes expected_pass_;  // what the last pass that had a backward saved
  Bytes largest_pass_;
};

}  // namespace ebbtide
