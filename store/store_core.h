// The heart of the store: what hooks pack into, unpack from, and keep alive.
#pragma once

#include <ebbtide/nvme/spill_tier.h>
#include <ebbtide/pinned_pool/export.h>
#include <ebbtide/pinned_pool/few.h>
#include <ebbtide/pinned_pool/pool.h>
#include <ebbtide/pinned_pool/topology.h>
#include <ebbtide/store/device_tier.h>
#include <ebbtide/store/options.h>
#include <ebbtide/store/pass.h>
#include <ebbtide/store/planned_record.h>
#include <ebbtide/store/planner.h>
#include <ebbtide/store/record.h>
#include <ebbtide/store/region.h>
#include <ebbtide/store/saved_plans.h>
#include <ebbtide/store/saved_profile.h>
#include <ebbtide/store/stats.h>
#include <ebbtide/store/storage_index.h>
#include <ebbtide/store/trace.h>
#include <ebbtide/store/waiter.h>
#include <ebbtide/transfer/block_cache.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <limits>
#include <map>
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
  /// Opens the tiers. `machine`: where memory and threads are bound; null: this one.
  /// Errors: ConfigError.
  static std::shared_ptr<StoreCore> open(const Options& options, std::shared_ptr<const Topology> machine = nullptr);
  ~StoreCore();

  struct DeviceOptions {
    /// False: only packs, unpacks and pump() move copies on (tests that replay a schedule).
    bool own_thread = true;
    /// What is known of its link, see measure_link.h.
    LinkBandwidth bandwidth = {};
    /// By which several devices' times are compared. Null: the system's. Else it outlives the core.
    const Clock* host_clock = nullptr;
  };
  /// Registers an accelerator; views name it by the number returned (0 is the host device). The first
  /// accelerator opens the host tier: before any CPU tensor was packed it leaves an eighth of host_budget for their
  /// staging, later it takes what staging left. Errors: ConfigError.
  int add_device(std::shared_ptr<Device> device, std::shared_ptr<DeviceAllocator> allocator, DeviceOptions how);

  /// A view that autograd saves, as bytes of a storage.
  struct View {
    const void* storage =
        nullptr;  ///< identity of the framework's storage, which the caller keeps alive during the call
    const void* version_counter = nullptr;  ///< identity; kept alive by whoever keeps the record
    uint32_t version = 0;
    Bytes begin, end;          ///< first byte and one past the last that the view touches, as offsets in the storage
    Rows rows;                 ///< of an accelerator's view, from `begin` to `end`: only these are ever read through it
    Bytes footprint;           ///< of the whole storage
    uint32_t dtype = 0;        ///< any number that tells one from another
    const char* op = nullptr;  ///< that made it, as typeid names its node; lives as long as the program
    int device = 0;            ///< see add_device
    /// The compute stream: the one that the storage was allocated for, and after whose present work its bytes are
    /// there.
    StreamId stream = kHostStream;
    const RegionLabel* region = nullptr;
    /// Its bytes may not be there yet: some ops save first what they enqueue the kernel for afterwards. Nor does the op
    /// let go of it before.
    bool written_later = false;
  };
  enum class RecipeWanted : uint8_t { kNone, kCheap, kAny };
  struct Packed {
    std::shared_ptr<Record> record;
    /// Offset of the view's storage in the one that was saved first: not 0 for memory that came back and is saved
    /// again.
    Bytes origin;
    /// Memory is short: recipes may save transfers, of those that read this record, and of the record itself as said.
    bool wants_recipes = false;
    RecipeWanted wanted = RecipeWanted::kNone;
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

  /// From now on the record's bytes may be let go of, to be redone when they are asked for. Refused, in silence, where
  /// the record has a recipe, where an input is of another store or rests on the record itself, and past a depth of
  /// kDeepestRecipe records.
  /// REQUIRES: the recipe was seen to make these very bytes; all inputs are of the record's device.
  void offer_recipe(Record& record, std::shared_ptr<const Recipe> recipe);
  static constexpr int kDeepestRecipe = 6;
  /// A region's recipe, if that is what it has, is not used: its bytes stay, or leave as others do. Too late where they
  /// were let go of.
  void keep_from_redo(Record& record);
  /// What the record's recipe takes is known by now. Of a recipe that the store did not take it is ignored.
  void note_recipe_takes(Record& record, const Recipe& recipe, double seconds);
  /// Whether its bytes were let go of, and its recipe makes them again.
  bool awaits_redo(const Record& record) const;
  /// True: recipes that are not cheap are looked for, and used where memory is short as cheap ones are; false: they are
  /// left to plans. By default they are used where nothing can leave; and where what leaves costs much, plans weigh them.
  void use_costly_recipes(bool use) noexcept { use_costly_recipes_ = use; }
  /// More has recipes than before: the next passes of each kind are learned from again.
  void learn_again() noexcept;
  /// False: passes keep to the reactive rule, whatever was learned of those before.
  void follow_plans(bool follow) noexcept { follow_plans_ = follow; }
  /// True: passes on accelerators that time no events are planned too, by the host's clock, which knows when work was
  /// asked for, and not when it ran. By default they keep to the reactive rule.
  void plan_for_accelerators(bool plan) noexcept { plan_for_accelerators_ = plan; }
  /// The record's recipe can be used no longer: its bytes stay, or leave as others do. True where they were let go of
  /// already: the caller has them made again while it can, and lets go of them, and then calls let_leave().
  bool give_recipe_up(Record& record);
  /// May wait for room. Errors: OutOfBudget.
  void let_leave(Record& record);
  /// A redo of this op made other bytes than the op had: its call site keeps bytes for good, and the report says so.
  void note_unequal_redo(const char* op);

  /// What unpack hands out: a storage that lives, or memory that the caller lays a storage over and offers to adopt(),
  /// or a recipe that the caller runs, on `stream`, and whose result it offers to redone().
  struct Unpacked {
    std::shared_ptr<DeviceStorage> storage;
    std::shared_ptr<ReturnedMemory> memory;
    Bytes origin;  ///< offset, in the storage that was saved, of the first byte of this one
    /// It was saved or came back for another stream, and may be let go of before the graph is: the framework must be told
    /// of the stream that asks now.
    bool of_another_stream = false;
    std::shared_ptr<const Recipe> recipe;
    double waited_s = 0;  ///< for a transfer
    /// More than ever is handed over, and more than the budget: the caller then says to whom, see note_burst().
    bool burst = false;
  };
  enum class AskedBy { kBackward, kRedo };  ///< what a redo reads is no step of the pass
  /// May wait for the record to come back from disk, never for a stream: `stream` (an accelerator's record: the compute
  /// stream) is made to wait for the copy. Errors: SpillError, DeviceError, CorruptTensor, OutOfBudget.
  Unpacked unpack(Record& record, StreamId stream = kHostStream, AskedBy by = AskedBy::kBackward);
  /// `node`: the node of the backward that the last unpack of `record` was for; empty where there was none.
  void note_burst(const Record& record, std::string node);
  /// Moves the copies of accelerators on, as every pack and unpack does. Never waits.
  void pump();
  /// The storage over `memory` to use from now on: `mine`, or another thread's that was first.
  std::shared_ptr<DeviceStorage> adopt(Record& record, const std::shared_ptr<ReturnedMemory>& memory,
                                       std::shared_ptr<DeviceStorage> mine);

  /// The storage to use from now on: `mine`, which the record's recipe has just made, or another thread's that was
  /// first. `seconds`: what the caller's thread spent on it. Errors: CorruptTensor (verify).
  std::shared_ptr<DeviceStorage> redone(Record& record, std::shared_ptr<DeviceStorage> mine, StreamId stream,
                                        double seconds);

  /// True if this graph task unpacks from the record's pass for the first time: the caller then sees to it that
  /// task_ended is called.
  bool task_began(Record& record, int task);
  /// `stream`: the compute stream now; none where the pass is of CPU tensors, or it is not known.
  void task_ended(Pass& pass, int task, std::optional<StreamId> stream = std::nullopt) noexcept;
  /// The scope of the pass ends: nothing is added to it any more, and all of it may leave. May wait for room.
  /// Errors: OutOfBudget.
  void scope_ended(const std::shared_ptr<Pass>& pass);
  /// Packs are refused from now on (see accepts_packs): the handle is gone or closed.
  void refuse_packs() noexcept { accepts_packs_ = false; }
  bool accepts_packs() const noexcept { return accepts_packs_; }
  /// Brings every live record home, waits for what is in flight, ends the spill tier. Idempotent.
  void close();
  bool closed() const noexcept { return closed_; }

  /// Smaller tensors are not worth moving, from host memory or from an accelerator's.
  Bytes min_bytes(bool host = true) const noexcept { return host ? min_bytes_ : min_bytes_of_devices_; }
  /// The NUMA node that CPU tensors come back to; any: that of the thread that asks.
  NumaNode host_node() const noexcept { return options_.numa.value_or(kAnyNode); }
  Bytes trim();
  /// Takes in what accelerators have got through, and may plan. Never waits for them.
  void learn_of_devices() noexcept;
  Stats stats() const;
  PassStats last_pass() const;
  std::string report() const;
  /// What becomes of each record of passes like the last, in order of packing; empty where that followed no plan.
  std::vector<PlannedRecord> plan() const;
  /// Those that passes follow.
  std::vector<SavedPlan> plans_in_force() const;
  /// As Store::follow().
  void follow(std::vector<SavedPlan> plans);
  /// Of passes like the last, and what is known of the machine; none before a pass has had a backward.
  std::optional<SavedProfile> profile() const;

  /// Takes down the next `passes` passes, and writes them to `path` when the last of them has ended, or at close().
  /// Errors: ConfigError where the file cannot be written, or a trace is under way.
  void trace(const std::string& path, int64_t passes);

  /// For the next caller's thread; each text once.
  void warn(std::string text);
  void set_warning_handler(WarningHandler handler);
  void set_waiter(std::shared_ptr<Waiter> waiter);

  /// What the hooks keep a store, made by `make` when first asked for.
  /// Threads: any.
  std::shared_ptr<void> extension(const std::function<std::shared_ptr<void>()>& make);

  /// What recipes hold beside the records that they read, and what redos keep for others.
  void note_recipe_bytes(Bytes change) noexcept;

  void note_handed_over(Bytes change) noexcept { host_.host_memory_handed_out += change.count(); }

  /// Around a fork: a child must not inherit the lock from a thread that it does not have.
  void lock_for_fork() { mutex_.lock(); }
  void unlock_in_parent() { mutex_.unlock(); }
  /// In the child lanes and disks may be locked by threads of the parent's: nothing is asked of them any more.
  void unlock_in_child() {
    in_child_ = true;
    mutex_.unlock();
  }

 private:
  friend class Record;
  friend class LinkThread;
  class Work;
  struct Part;
  struct CopyOut;
  struct Caller;
  struct CopyIn;
  struct Sink;
  class MarkedWait;
  enum class Urgency { kPrefetch, kDemand };

  StoreCore(Options options, std::shared_ptr<const Topology> machine);

  // leaving.cpp: from resident memory down. May wait; REQUIRES: the lock is not held.
  enum class Until { kWithinBudget, kAllIsGoneThatLeavesAtOnce, kAsFarAsPossible };
  void settle(Pass* pass, DeviceTier& tier, Until until = Until::kWithinBudget);
  Bytes dirty_limit_locked(const DeviceTier& tier, const Pass* pass) const noexcept;
  enum class Look { kForAll, kForDroppable };
  static constexpr int64_t kAll = std::numeric_limits<int64_t>::max();
  void look_again_locked(DeviceTier& tier, int64_t at_most, Look look = Look::kForAll);
  void begin_leaving_locked(DeviceTier& tier, Pass* pass, Work& work);
  void leave_locked(Resident& resident, Work& work);
  void drop_clean_locked(DeviceTier& tier, Bytes target, Work& work);
  void drop_locked(Resident& resident, Work& work);
  void drop_record_locked(Record& record, Work& work);
  bool may_spill_locked() noexcept;
  bool may_leave_locked(DeviceTier& tier) noexcept;
  bool none_can_leave_locked(DeviceTier& tier, Bytes only_here);
  static const Record* too_large_locked(const DeviceTier& tier) noexcept;
  void note_full_locked(Bytes held_before);
  static void note_host_full_locked(DeviceTier& tier, Bytes wanted, bool short_of_memory) noexcept;
  std::string why_nothing_leaves_locked(const DeviceTier& tier) const;
  void write(const std::shared_ptr<Record>& record, const std::shared_ptr<DeviceStorage>& storage);
  void write_done(uint64_t record_id, Result<SpilledItem> item, std::shared_ptr<DeviceStorage> storage);
  void write_failed_locked(Record& record, const Failure& failure, Bytes held_before = {});
  void note_write_error_locked(const Failure& failure, Bytes held_before);

  // planning.cpp: passes that follow what was learned of those before.
  void freeze_plan();
  void expect_planned_locked(DeviceTier& tier) noexcept;
  bool worth_a_log_locked() const noexcept;
  void note_pack_locked(Record& record, Pass& pass, const View& view);
  void follow_locked(Pass& pass, std::shared_ptr<const Course> course);
  void note_unpack(Record& record, StreamId stream);
  void note_recipe_locked(Record& record, std::optional<double> seconds);
  void note_redo_locked(Record& record, double seconds);
  std::optional<Planner::Task> learn_locked(Pass& pass);
  Bytes disk_moved() const;
  std::vector<Conditions> conditions_locked() const;
  void adopt(const Planner::Task& task) noexcept;

  // timing.cpp: when an accelerator's passes did what. REQUIRES, but for what is _locked: the lock is not held.
  EventPtr mark_pack(DeviceTier& tier, const Pass* pass, StreamId stream);
  void mark_pack_locked(Pass& pass, const DeviceTier& tier, StreamId stream, const EventPtr& event) const;
  enum class Redo { kBegins, kEnded };
  static void mark_redo(const Record& record, StreamId stream, Redo redo);
  void mark_end(Pass& pass, int task, std::optional<StreamId> stream) noexcept;
  void learn_locked(const DeviceTimes::Known& known, std::optional<Planner::Task>& to_plan);

  // peaks.cpp: budgets that follow what the whole process takes.
  void aim_at_peak(DeviceTier& tier, std::shared_ptr<MemoryMeter> meter, std::optional<Bytes> free);
  std::optional<MemoryUsage> memory_usage(DeviceTier& tier);
  void note_memory_locked(DeviceTier& tier, const Pass& pass, const std::optional<MemoryUsage>& usage,
                          const PeakGoal::Moment& moment);
  using Usages = std::vector<std::pair<DeviceTier*, MemoryUsage>>;
  Usages memory_at_end();
  void note_memory_at_end_locked(const Pass& pass, const Usages& usages);
  void follow_goal_locked(DeviceTier& tier);
  MemoryStats memory_stats_locked(const DeviceTier& tier) const;
  void ease_locked(DeviceTier& tier, Bytes wanted);

  // redoing.cpp: records whose bytes are made again.
  bool recipes_help_locked(DeviceTier& tier, Pass& pass) const noexcept;
  static int depth_locked(const Record& record) noexcept;
  static bool rests_on_locked(const Recipe& recipe, const Record& record) noexcept;
  RecipeWanted recipe_wanted_locked(const Record& record, bool planned) const noexcept;
  bool costly_help_locked(const DeviceTier& tier) const noexcept;
  bool redo_wanted_locked(const Record& record) const noexcept;
  static bool sealed_locked(const Record& record) noexcept;
  bool may_be_redone_locked(const Resident& resident) noexcept;
  void drop_redoable_locked(DeviceTier& tier, Bytes target, Work& work);
  void give_recipes_up_locked(DeviceTier& tier, Bytes missing);
  void note_redoable_locked(Record& record, bool redoable) noexcept;
  std::shared_ptr<const Recipe> recipe_for_unpack_locked(Record& record, StreamId stream, Work& work);

  // device_leaving.cpp: from an accelerator's memory into host memory, and on to disk.
  bool hasten(std::unique_lock<std::mutex>& lock, DeviceTier& tier);
  bool copies_run_locked() noexcept;
  Bytes host_coming_free_locked() const;
  void note_enqueued_locked(DeviceTier& tier);
  void copy_out(const Few<CopyOut>& orders);
  void copy_out_done(Passage& passage, const Status& status);
  void copy_out_failed_locked(Record& record, const Failure& failure);
  void part_locked(Record& record, const Resident& resident, Work& work);
  void part(const Part& order);
  void sink_ahead();
  void sink_locked(Bytes wanted, Work& work);
  void sink(Sink order);
  void sink_done(uint64_t record_id, Result<SpilledItem> item, std::shared_ptr<HostCopy> memory,
                 Bytes held_before = {});
  void hold_host_locked(Record& record, std::shared_ptr<HostCopy> memory);
  std::shared_ptr<HostCopy> let_go_host_locked(Record& record) noexcept;
  void settle_passage_locked(Passage& passage, Record* record, Work& work);
  void forget_copies_locked(Record& record, Work& work);

  // host_sharing.cpp: what each accelerator may have of host memory.
  Bytes host_share_locked(const DeviceTier& tier) const noexcept;
  Bytes host_for_plans_locked(const DeviceTier& tier) const noexcept;
  bool host_is_promised_locked(const DeviceTier& tier, Bytes more) const noexcept;
  void note_wants_locked(const Pass& pass) noexcept;
  void note_host_room_locked() noexcept;

  // device_returning.cpp: from host memory or disk into an accelerator's.
  Unpacked unpack_from_device(Record& record, StreamId stream);
  bool take(std::unique_lock<std::mutex>& lock, Record& record, StreamId stream);
  void forsake_copy_in_locked(Record& record, Work& work);
  void begin_copies_in_locked(DeviceTier& tier, const Caller& caller, Work& work);
  void copy_in(const CopyIn& order);
  static Failure failed_device(const Record& record, const Failure& why);
  void copy_in_refused(Record& record, const Failure& failure);
  void return_refused_locked(Record& record, const Failure& failure, Work& work);
  void copy_in_done(Passage& passage, const Status& status);
  void lift(const std::shared_ptr<Record>& record, Urgency urgency);
  void lift_done(uint64_t record_id, const Status& status, std::shared_ptr<HostCopy> memory);
  void back_to_lower_locked(Record& record, Work& work);
  void lift_for_close_locked(Record& record, Work& work);

  // returning.cpp: from below into resident memory.
  void begin_return_locked(Record& record, const Caller& caller, Urgency urgency, Work& work);
  void prefetch_locked(Pass& pass, DeviceTier& tier, const Caller& caller, Work& work);
  static void put_off_locked(Record& record) noexcept;
  void put_off_lifts_locked(DeviceTier& tier, Work& work);
  static void unreserve_locked(Record& record) noexcept;
  void warm_up_locked(const Record& record) const noexcept;
  [[noreturn]] static void throw_lost(const Failure& why);
  void read(const std::shared_ptr<Record>& record, Urgency urgency);
  void read_done(uint64_t record_id, const Status& status);
  void check_fingerprint(const Record& record, const std::byte* data) const;

  /// The record whose transfer has ended; null if it died meanwhile. Then the lock is let go of in between, and what was
  /// `written` is gone.
  Record* arrived_locked(std::unique_lock<std::mutex>& lock, uint64_t record_id,
                         Result<SpilledItem>* written = nullptr) noexcept;

  DeviceTier& tier_of(const View& view);
  Few<DeviceTier*> all_tiers();
  void open_staging(std::optional<Bytes> most);
  void open_host_tier(const std::shared_ptr<Device>& device);
  const Topology* topology();
  std::unique_ptr<PinnedPool> open_host_pool(Bytes capacity, std::shared_ptr<HostRegistrar> registrar);
  void note_pageable();
  void forget(Record& record) noexcept;
  void detach_locked(Record& record, Work& work);
  void place_locked(Resident& resident, bool to_front = false) noexcept;
  static DeviceTier::Place place_by_states(const Resident& resident) noexcept;
  Resident* pick_victim_locked(DeviceTier& tier) noexcept;
  void end_pass_locked(Pass& pass) noexcept;
  void note_saved_locked(DeviceTier& tier, Bytes saved) noexcept;
  bool warn_of_silence_locked();
  void warn_once_locked(const std::string& key, std::string text);
  void deliver_warnings();
  enum class StallCause { kRoom, kHostRoom, kCopies, kReturn, kClose };
  static const char* name_of(StallCause cause) noexcept;
  double wait(std::unique_lock<std::mutex>& lock, Pass* stalled, StallCause cause, Record* wanted,
              const std::function<bool()>& done);

  // tracing.cpp. REQUIRES, but for the last: trace_.
  static Trace::Of traced(const Record& record) noexcept;
  void trace_call_locked(const char* what, Trace::Time begin, const Trace::Of& of);
  void trace_begin_locked(Trace::Flow flow, const Record& record);
  void trace_end_locked(Trace::Flow flow, const Record& record);
  void trace_transfer_locked(const Record& record, RecordState next);
  void trace_levels_locked(Trace::Time now);
  enum class EvenUnfinished { kNo, kYes };
  void write_trace(EvenUnfinished even_unfinished) noexcept;

  const Options options_;
  // After warm-up, what a tensor that leaves and comes back needs of these takes no memory of the heap.
  const SharedBlockCache records_;
  const SharedBlockCache residents_;
  const CachedAllocator<Passage> passages_;
  const CachedAllocator<HostCopy> host_copy_objects_;
  Bytes min_bytes_;
  Bytes min_bytes_of_devices_;
  std::once_flag topology_loaded_;
  std::shared_ptr<const Topology> topology_;  // null where nothing is bound; use topology()
  std::once_flag staging_opened_;
  std::once_flag host_tier_opened_;
  Bytes staging_budget_;
  std::unique_ptr<PinnedPool> pool_;
  std::unique_ptr<SpillTier> spill_;  // null without a folder
  const std::chrono::steady_clock::time_point opened_at_ = std::chrono::steady_clock::now();
  Bytes host_budget_;                      // of the host tier: what accelerators' records lie in
  std::unique_ptr<PinnedPool> host_pool_;  // null without an accelerator
  std::shared_ptr<HostRegistrar> host_registrar_;
  std::shared_ptr<LinkThread> link_thread_;
  std::atomic<bool> pageable_said_{false};
  std::atomic<bool> accepts_packs_{true};
  std::atomic<bool> closed_{false};
  std::atomic<bool> in_child_{false};
  std::atomic<std::optional<bool>> use_costly_recipes_;
  std::atomic<bool> weigh_costly_recipes_{false};  // moving takes much time
  std::atomic<bool> follow_plans_{true};
  std::atomic<bool> plan_for_accelerators_{false};
  std::atomic<bool> aims_{false};  // some tier has a goal
  std::atomic<int64_t> recipe_bytes_{0};
  std::atomic<int64_t> recipe_bytes_peak_{0};

  mutable std::mutex mutex_;
  std::condition_variable changed_;  // some transfer has ended
  int64_t waiting_ = 0;              // how many threads for that
  std::deque<DeviceTier> tiers_;     // a device each, the host device first; grows only
  DeviceTier& host_;                 // of CPU tensors
  StorageIndex by_storage_;
  IntrusiveList<Record> live_;
  // Records with a transfer under way, for its completion: an owning reference there could make an I/O thread the one
  // to end a record.
  std::unordered_map<uint64_t, Record*> under_way_;
  int64_t transfers_of_the_dead_ = 0;  // that were in there
  int64_t below_ = 0;                  // records in kLower
  uint64_t next_record_ = 1;
  int64_t next_pass_ = 1;
  size_t longest_sequence_ = 0;  // of the passes that ended
  std::optional<Bytes>
      full_at_;  // what the spill tier held when it had no room; asked again when it holds less, or later
  std::chrono::steady_clock::time_point full_until_;
  bool staging_full_ = false;  // until returned memory dies
  int64_t write_errors_ = 0;   // in a row
  std::string last_write_error_;
  Few<std::shared_ptr<DeviceStorage>> buried_;  // of writes that ended: dropped on the next caller's thread
  std::vector<std::string> warnings_;           // for the next caller's thread
  std::vector<std::string> warned_;
  WarningHandler warning_handler_;
  std::shared_ptr<Waiter> waiter_;
  std::shared_ptr<void> extension_;
  Stats stats_;  // the counters; tiers and links are read when asked
  std::map<const char*, Count> passed_through_;
  std::map<const char*, Count> recomputed_ops_;
  std::map<const RegionLabel*, Fates> regions_;
  std::map<const char*, int64_t> unequal_redos_;
  std::map<const char*, double> redo_speed_on_devices_;  // bytes a second, by op
  std::map<const char*, double> redo_speed_;             // bytes a second, by op
  std::map<const char*, Waits> stalls_;                  // by name_of(StallCause)
  std::map<const char*, Waits> returns_waited_for_;      // by op
  std::map<const RegionLabel*, Waits> stalled_regions_;
  PassStats last_pass_;
  Planner planner_;
  struct Unlearned {
    int64_t number = 0;
    double host_seconds = 0;  // what its caller took
    PassLog log;
    std::shared_ptr<DeviceTimes> times;
    std::shared_ptr<const Course> followed;
    bool crowded = false;
  };
  std::deque<Unlearned> unlearned_;  // passes whose devices are not known to be through
  std::unique_ptr<Trace> trace_;     // of passes to come, or running
  PassLog last_log_;                 // of the last pass that ended
  PassLog spare_log_;                // empty, for the next

  // The host tier.
  IntrusiveList<LowerCopy> host_copies_;  // in order of leaving
  Bytes host_bytes_;                      // in them
  Bytes host_pool_bytes_;                 // the same, as the pool counts
  Bytes sinking_;                         // of those that a disk reads
  uint64_t host_rooms_ = 0;               // how often there was more room there
  int64_t copies_out_done_ = 0;           // well or not
  int64_t lifting_ = 0;                   // reads into the host tier under way
};

}  // namespace ebbtide
