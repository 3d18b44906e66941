// The one machine that a mutant runs on: who acts on it, what orders them, and what is left out.
#pragma once

#include <ebbtide/pinned_pool/bytes.h>
#include <ebbtide/transfer/device.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "tests/support/chaos_device.h"

namespace ebbtide::mutants {

/// All of a run happens on one thread, and so a seed replays exactly. Whoever acts beside the program (the disk, the
/// thread that looks after the lanes) takes a turn where the program waits, and between its calls; each is an agent of
/// the race detector, ordered with others by the locks that they take and by nothing else.
///
/// One at a time; what is woven into the sources (weave.py) finds it by now().
class World {
 public:
  /// `left_out`: the mutant, by its name; empty: nothing. Lifetime: `device` outlives it.
  World(test::ChaosDevice& device, std::string left_out, uint64_t seed);
  ~World();
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  static World* now() noexcept { return now_; }

  test::ChaosDevice& device() noexcept { return device_; }
  bool left_out(const char* name) const noexcept { return left_out_ == name; }
  std::mt19937_64& random() noexcept { return random_; }

  /// What was left out would have changed something here. Judged where it is left out, never by the races that come of
  /// it.
  void note_executed() noexcept { executed_ = true; }
  bool executed() const { return executed_ || device_.missed_an_order(); }

  /// A condition was passed over; whether that matters shows in what follows.
  void note_passed_over() noexcept { passed_over_ = true; }
  bool take_passed_over() noexcept { return std::exchange(passed_over_, false); }

  /// Somebody who acts beside the program gets a turn. Threads: not from within a turn.
  void turn();
  /// As a thread of its own: `work` is what it does in one turn.
  void add_actor(std::function<void()> work) { actors_.push_back(std::move(work)); }
  void let_actors_go() { actors_.clear(); }

  // What the woven sources tell.
  /// A lock is taken, or let go of: its moment is joined, or kept.
  void acquire(const test::VectorClock& moment) { device_.host_after(moment); }
  void release(test::VectorClock& moment) { moment = device_.host_moment(); }
  /// Host memory is handed out, and given back: the latter counts as a write to it by whoever gets it next. The
  /// allocator's own lock is between the two.
  void memory_begins();
  void memory_ends(const void* data, size_t bytes);
  /// Memory goes back to the system, which may hand out the same addresses again.
  void memory_unmapped() { allocator_.join(device_.host_moment()); }
  /// A disk begins to read.
  void memory_read(const void* data);
  /// Device memory is given back on its stream.
  void storage_ends(const void* data, StreamId stream);
  /// Nothing holds the memory at `data` for `transfer` any more: if it ends before the transfer does, was that in
  /// order? `event`: after the transfer; null: it has ended, or has not begun.
  void watch(const void* data, const void* transfer) { watched_.emplace(data, transfer); }
  void begin_transfer(const void* transfer, std::function<EventPtr()> event) {
    transfers_[transfer] = std::move(event);
  }
  void end_transfer(const void* transfer);
  /// A disk is about to tell the end of a transfer, in which it touched memory or did not.
  void set_disk_touched(bool touched) noexcept { disk_touched_ = touched; }
  bool disk_touched() const noexcept { return disk_touched_; }
  /// An event of the driver's is in use for `meant`, until its handle is given back.
  void handle_begins(const void* holder, EventPtr meant) { meant_[holder] = std::move(meant); }
  void handle_ends(const void* holder) { meant_.erase(holder); }
  EventPtr meant_by(const void* holder) const;
  /// What the driver has recorded under a handle.
  std::function<EventPtr(const void*)> recorded;

  /// Bytes that a lane may have in flight.
  Bytes cap = MiB(64);
  /// The end of a record's producer, where the device had no event for it.
  std::unordered_map<const void*, EventPtr> produced;

 private:
  static World* now_;

  test::ChaosDevice& device_;
  const std::string left_out_;
  std::mt19937_64 random_;
  bool executed_ = false;
  bool passed_over_ = false;
  bool in_turn_ = false;
  int64_t turns_ = 0;
  std::vector<std::function<void()>> actors_;
  test::VectorClock allocator_;
  bool disk_touched_ = false;
  std::unordered_multimap<const void*, const void*> watched_;  // memory and transfer
  std::unordered_map<const void*, std::function<EventPtr()>> transfers_;
  std::unordered_map<const void*, EventPtr> meant_;
};

}  // namespace ebbtide::mutants
