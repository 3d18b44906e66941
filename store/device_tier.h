// The top tier of one device: which saved storages lie in its memory, in which order they may leave, and how many bytes
// they hold, in the budget and beyond it.
#pragma once

#include <ebbtide/pinned_pool/bytes.h>
#include <ebbtide/pinned_pool/numa_node.h>
#include <ebbtide/store/device_link.h>
#include <ebbtide/store/intrusive_list.h>
#include <ebbtide/store/outlived.h>
#include <ebbtide/store/peak_goal.h>
#include <ebbtide/store/record.h>
#include <ebbtide/store/stats.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <memory>
#include <utility>

namespace ebbtide {

/// A resident is in exactly one list. Guarded by the core's lock.
class DeviceTier {
 public:
  enum class Place {
    kElsewhere,  ///< somebody else holds the storage too: not in the budget, looked at again
    kDirty,      ///< the store's alone, and the only copy
    kPlanned,    ///< the same, but a plan says that it stays
    kRedoable,   ///< the store's alone, and no other copy, but a recipe
    kLeaving,    ///< a copy of it is under way
    kClean,      ///< a lower copy exists
    kReturning,  ///< a transfer fills it
  };

  DeviceTier(std::shared_ptr<Device> on, size_t number) noexcept : device(std::move(on)), index(number) {}

  const std::shared_ptr<Device> device;
  const size_t index;                ///< as views name it
  std::shared_ptr<DeviceLink> link;  ///< set for accelerators, once: host memory needs none
  NumaNode node = kAnyNode;          ///< that its host memory is taken from; any: the calling thread's

  Bytes expected_pass;      ///< what the last pass that had a backward saved on this device
  Bytes expected_redoable;  ///< part of it: what had recipes
  Bytes largest_pass_saved;
  int64_t copy_errors = 0;  ///< in a row

  // Of an accelerator, see host_sharing.cpp.
  Bytes host_bytes;               ///< of host memory, in copies of its records
  Bytes wants_below;              ///< what its last pass that had a backward could not keep
  int64_t passes_without_it = 0;  ///< that ended since, and saved nothing here
  bool host_full = false;         ///< host memory has refused a record, and nothing has gone from there since
  Bytes host_wanted;              ///< by that record
  bool host_short = false;        ///< for which the system had no memory, though host_budget had room
  bool lifts_full = false;        ///< no room for what is fetched ahead, for which host memory does not grow
  std::chrono::steady_clock::time_point host_full_until;  ///< then it is asked again, whatever has gone

  std::atomic<bool> times{true};  ///< its events, as far as is known

  Bytes budget;
  bool budget_given = false;                                   ///< a promise; else automatic
  std::shared_ptr<MemoryMeter> meter;                          ///< where there is a goal
  std::unique_ptr<PeakGoal> goal;                              ///< that the budget follows
  std::atomic<PeakGoal::Looks> looks{PeakGoal::Looks::kNone};  ///< what the goal asks for
  Bytes alive;                                                 ///< footprints of its records that have not died

  /// Host memory handed out by unpack and alive. The memory itself counts, see ReturnedMemory: not under the lock.
  std::atomic<int64_t> host_memory_handed_out{0};
  Burst burst;  ///< the most that one node had at once, where the budget could not hold it

  /// What counts in the budget.
  Bytes held() const noexcept { return held_; }
  Bytes peak() const noexcept { return peak_; }
  /// The most of it since the last pass began.
  Bytes peak_of_pass() const noexcept { return peak_of_pass_; }
  void begin_pass() noexcept { peak_of_pass_ = held_; }
  /// Saved, and somebody else's too.
  Bytes referenced_elsewhere() const noexcept { return bytes(Place::kElsewhere) - handed_out_elsewhere_; }
  Bytes referenced_elsewhere_peak() const noexcept { return referenced_elsewhere_peak_; }
  /// Returned by unpack and alive, but no longer in held(): whoever asked has it, and dropping it would free nothing.
  Bytes handed_over() const noexcept {
    if (link) return handed_out_elsewhere_ + outlived_.bytes();
    return Bytes(host_memory_handed_out.load(std::memory_order_relaxed)) - handed_out_held_;
  }
  Bytes handed_over_peak() const noexcept { return handed_over_peak_; }
  /// The most of all three at one time, and of what copies still touched whose tensors had died.
  Bytes alive_peak() const noexcept { return alive_peak_; }
  Bytes bytes(Place place) const noexcept { return bytes_[slot(place)]; }
  const IntrusiveList<Resident>& list(Place place) const noexcept { return lists_[slot(place)]; }

  // What leaves at once stands before all others.
  void add(Resident& resident, Place place) noexcept { insert(resident, place, /*at_front=*/false); }
  void move(Resident& resident, Place place, bool to_front = false) noexcept {
    remove(resident);
    insert(resident, place, to_front);
  }
  void remove(Resident& resident) noexcept {
    const Place place = place_of(resident);
    count_at_once(resident, place, -1);
    lists_[slot(place)].remove(resident);
    bytes_[slot(place)] -= resident.bytes;
    if (resident.handed_out) handed_out(place) -= resident.bytes;
    if (place != Place::kElsewhere) held_ -= resident.bytes;
  }
  Place place_of(const Resident& resident) const noexcept {
    const auto* list = IntrusiveList<Resident>::list_of(resident);
    return list != nullptr ? static_cast<Place>(list - lists_) : Place::kElsewhere;
  }

  /// An unpack returns what came back.
  void note_handed_out(Resident& resident) noexcept {
    if (std::exchange(resident.handed_out, true)) return;
    handed_out(place_of(resident)) += resident.bytes;
  }
  /// A resident was removed whose storage lives on in the hands of who unpacked it.
  void note_outlived(const Resident& resident) {
    outlived_.add(resident.storage->watch(), resident.bytes);
    handed_over_peak_ = std::max(handed_over_peak_, handed_over());
  }
  /// A resident was removed whose storage lives on until a copy has passed.
  void note_copied_still(const Resident& resident) { copied_still_.add(resident.storage->watch(), resident.bytes); }

  /// How many leave at once and are on their way.
  int64_t leaving_at_once() const noexcept { return leaving_at_once_; }
  /// Whether something waits to leave, or to be let go of, whatever the budget has room for.
  bool some_at_once() const noexcept { return at_once_ > 0; }

  /// Of alive_peak() alone: where a budget has yet to be held, its own peak is of what is left then.
  void note_alive() noexcept {
    alive_peak_ = std::max(alive_peak_, held_ + referenced_elsewhere() + handed_over() + copied_still_.bytes());
  }
  /// Returns whether more is handed over than ever before.
  bool note_peak() noexcept {
    peak_of_pass_ = std::max(peak_of_pass_, held_);
    peak_ = std::max(peak_, held_);
    referenced_elsewhere_peak_ = std::max(referenced_elsewhere_peak_, referenced_elsewhere());
    note_alive();
    const Bytes now = handed_over();
    if (now <= handed_over_peak_) return false;
    handed_over_peak_ = now;
    return true;
  }

 private:
  void count_at_once(const Resident& resident, Place place, int change) noexcept {
    if (!resident.at_once) return;
    if (place == Place::kDirty || place == Place::kClean || place == Place::kRedoable) at_once_ += change;
    if (place == Place::kLeaving) leaving_at_once_ += change;
  }

  static constexpr size_t kPlaces = 7;
  static constexpr size_t slot(Place place) noexcept { return static_cast<size_t>(place); }
  Bytes& handed_out(Place place) noexcept {
    return place == Place::kElsewhere ? handed_out_elsewhere_ : handed_out_held_;
  }

  void insert(Resident& resident, Place place, bool at_front) noexcept {
    // What is in other hands is gone round, front to back: nothing there comes before the rest.
    const bool first = at_front || (resident.at_once && place != Place::kElsewhere);
    first ? lists_[slot(place)].push_front(resident) : lists_[slot(place)].push_back(resident);
    bytes_[slot(place)] += resident.bytes;
    if (resident.handed_out) handed_out(place) += resident.bytes;
    if (place != Place::kElsewhere) held_ += resident.bytes;
    count_at_once(resident, place, +1);
  }

  IntrusiveList<Resident> lists_[kPlaces];  // by slot()
  Bytes bytes_[kPlaces];
  int64_t at_once_ = 0;
  int64_t leaving_at_once_ = 0;
  Bytes held_;  // all but kElsewhere
  Bytes peak_;
  Bytes peak_of_pass_;
  Bytes handed_out_held_;
  Bytes handed_out_elsewhere_;
  Outlived outlived_;
  Outlived copied_still_;
  Bytes handed_over_peak_;
  Bytes referenced_elsewhere_peak_;
  Bytes alive_peak_;
};

}  // namespace ebbtide
