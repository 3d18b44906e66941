// How saved tensors leave resident memory: which, when, and what happens when they cannot.
#include <ebbtide/store/error.h>
#include <ebbtide/store/store_core.h>
#include <ebbtide/store/work.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <tuple>
#include <utility>

namespace ebbtide {
namespace {

/// A disk or a device that failed this often in a row is not asked again.
constexpr int64_t kErrorsToGiveUp = 3;
/// A full disk may be emptied by somebody else, and memory that the system had not be there again.
constexpr std::chrono::seconds kAskAgainAfter{1};

}  // namespace

/// The reactive rule. Copies start early and memory is let go late, when the budget needs it: so the end of the forward
/// is still in memory when the backward begins, and callers wait only where the disk is slower than the computation.
void StoreCore::settle(Pass* pass, DeviceTier& tier, Until until) {
  const auto within = [&] { return tier.held() <= tier.budget; };
  for (;;) {
    if (tier.link) pump();
    Work work(*this);
    std::unique_lock lock(mutex_);
    std::swap(work.exhumed, buried_);
    if (tier.link) note_enqueued_locked(tier);
    drop_redoable_locked(tier, tier.budget, work);
    begin_leaving_locked(tier, pass, work);
    drop_clean_locked(tier, tier.budget, work);
    put_off_lifts_locked(tier, work);
    const bool disk_full = full_at_.has_value();
    const bool was_full = tier.host_full;
    const bool over = tier.held() > tier.budget;
    if (over && tier.link && tier.host_full) sink_locked(tier.host_wanted, work);
    if (!work.empty()) {
      lock.unlock();
      work.run();
      continue;
    }
    if (over && !closed_ && tier.link) {
      if (hasten(lock, tier)) continue;
      if (was_full && !tier.host_full) continue;  // meanwhile something made room
      if (tier.host_full && sinking_ > Bytes(0)) {
        wait(lock, pass, StallCause::kHostRoom, nullptr,
             [&] { return within() || !tier.host_full || sinking_ == Bytes(0); });
        continue;
      }
      // The program is far ahead of the device: the disk has room, but not for what no copy has filled yet.
      if (tier.host_full && link_thread_ && copies_run_locked()) {
        wait(lock, pass, StallCause::kCopies, nullptr, [&, seen = copies_out_done_] {
          return within() || copies_out_done_ != seen || !tier.host_full || sinking_ > Bytes(0);
        });
        continue;
      }
      // Records died, and copies or the disk hold their host memory a moment longer.
      const Bytes coming_free = tier.host_full && link_thread_ ? host_coming_free_locked() : Bytes(0);
      if (coming_free > Bytes(0)) {
        wait(lock, pass, StallCause::kHostRoom, nullptr,
             [&] { return within() || !tier.host_full || host_coming_free_locked() < coming_free; });
        note_host_room_locked();
        continue;
      }
    } else if (over && !closed_ && tier.bytes(DeviceTier::Place::kLeaving) > Bytes(0)) {
      wait(lock, pass, StallCause::kRoom, nullptr, [&] {
        return within() || pick_victim_locked(tier) != nullptr || tier.bytes(DeviceTier::Place::kLeaving) == Bytes(0);
      });
      continue;
    }
    // Records died, and so does what the disk holds of them as their transfers end.
    if (over && full_at_ && transfers_of_the_dead_ > 0 && (!tier.link || tier.host_full)) {
      wait(lock, pass, StallCause::kRoom, nullptr,
           [&, seen = transfers_of_the_dead_] { return within() || transfers_of_the_dead_ < seen; });
      full_at_.reset();
      continue;
    }
    // What is coming back may be let go of as soon as it is there.
    const Bytes returning = tier.bytes(DeviceTier::Place::kReturning);
    if (over && !closed_ && returning > Bytes(0) && (!tier.link || link_thread_)) {
      wait(lock, pass, StallCause::kRoom, nullptr, [&] {
        return within() || pick_victim_locked(tier) != nullptr || tier.bytes(DeviceTier::Place::kReturning) < returning;
      });
      continue;
    }
    if (until == Until::kAllIsGoneThatLeavesAtOnce && !tier.link && !closed_ && tier.leaving_at_once() > 0) {
      wait(lock, pass, StallCause::kRoom, nullptr,
           [&, seen = tier.leaving_at_once()] { return tier.leaving_at_once() < seen; });
      continue;
    }
    tier.note_peak();
    if (until == Until::kAsFarAsPossible) break;
    // What has a recipe goes as soon as nobody holds its inputs.
    const bool over_for_good = tier.held() - tier.bytes(DeviceTier::Place::kRedoable) > tier.budget;
    const Bytes only_here = tier.bytes(DeviceTier::Place::kDirty) + tier.bytes(DeviceTier::Place::kPlanned);
    if (over_for_good && only_here > Bytes(0) && !closed_ && none_can_leave_locked(tier, only_here)) {
      const std::string why = why_nothing_leaves_locked(tier);
      if (options_.on_full == OnFull::kRaise ||
          (options_.on_full == OnFull::kAutomatic && tier.budget_given && !tier.link)) {
        lock.unlock();
        deliver_warnings();
        throw OutOfBudget(why);
      }
      warn_once_locked("kept over budget", why + " The tensors are kept.");
    }
    if (over && disk_full && !full_at_) continue;  // it has just got room
    break;
  }
  deliver_warnings();
}

bool StoreCore::may_spill_locked() noexcept {
  if (!spill_ || closed_ || write_errors_ >= kErrorsToGiveUp) return false;
  if (!full_at_) return true;
  if (spill_->bytes() >= *full_at_ && std::chrono::steady_clock::now() < full_until_) return false;
  full_at_.reset();
  return true;
}

/// REQUIRES: the tier said that it has no room. `held_before`: by it, before it was asked: what has gone since is room, and
/// since others were refused too.
void StoreCore::note_full_locked(Bytes held_before) {
  full_at_ = std::max({full_at_.value_or(Bytes(0)), held_before, spill_->bytes()});
  full_until_ = std::chrono::steady_clock::now() + kAskAgainAfter;
}

/// Host memory has no room for a record that would fit into it.
void StoreCore::note_host_full_locked(DeviceTier& tier, Bytes wanted, bool short_of_memory) noexcept {
  tier.host_full = true;
  tier.host_wanted = wanted;
  tier.host_short = short_of_memory;
  tier.host_full_until = std::chrono::steady_clock::now() + kAskAgainAfter;
}

bool StoreCore::may_leave_locked(DeviceTier& tier) noexcept {
  if (!tier.link) return may_spill_locked();
  // Where nothing lies in host memory, nothing that goes from there would tell that there is room.
  if (tier.host_full && std::chrono::steady_clock::now() >= tier.host_full_until) tier.host_full = false;
  return !closed_ && !tier.host_full && tier.copy_errors < kErrorsToGiveUp;
}

/// Whether the `only_here` bytes that have no other copy stay until something else changes. REQUIRES: all that may leave
/// has begun to.
bool StoreCore::none_can_leave_locked(DeviceTier& tier, Bytes only_here) {
  if (may_leave_locked(tier)) return only_here > tier.budget && too_large_locked(tier) != nullptr;
  if (!tier.link || tier.copy_errors >= kErrorsToGiveUp) return true;
  // The disk makes room in host memory, if something lies there.
  return !may_spill_locked() || (tier.host_short && host_pool_->stats().live_bytes == Bytes(0));
}

/// A record that host memory can never hold, among those that have no other copy; null: there is none.
const Record* StoreCore::too_large_locked(const DeviceTier& tier) noexcept {
  for (const DeviceTier::Place place : {DeviceTier::Place::kDirty, DeviceTier::Place::kPlanned}) {
    const auto& list = tier.list(place);
    for (const Resident* resident = list.front(); resident != nullptr; resident = list.next(*resident))
      for (const Record* record : resident->records)
        if (record->stays_) return record;
  }
  return nullptr;
}

std::string StoreCore::why_nothing_leaves_locked(const DeviceTier& tier) const {
  const std::string more = to_string(tier.held() - tier.budget);
  const bool derived = tier.goal && options_.device_memory;
  const std::string budget = derived ? "device_memory" : "device_budget";
  std::string why =
      "saved tensors hold " + to_string(tier.held()) + ", " +
      (derived ? "device_memory (" + to_string(tier.goal->most()) + ") leaves them " : "device_budget is ") +
      to_string(tier.budget) + ", and none can leave: ";
  if (tier.link) {
    if (tier.copy_errors >= kErrorsToGiveUp)
      return why + "copies from " + tier.device->name() + " fail (" + last_write_error_ + "). Raise " + budget +
             " by at least " + more + ".";
    const std::string host = "host_budget (" + to_string(host_budget_) + " for the tensors of devices)";
    if (const Record* record = tier.host_full ? nullptr : too_large_locked(tier))
      return why + "one of " + to_string(record->packed_bytes()) + " is larger than what fits into " + host +
             ". Raise host_budget, or " + budget + " by at least " + more + ".";
    if (tier.host_full && tier.host_short)
      return why + "the system has no memory for more of " + host + " than the " +
             to_string(host_pool_->stats().slab_bytes) + " that are taken. Leave it more memory, or raise " + budget +
             " by at least " + more + ".";
    why +=
        host + " is full" +
        (host_is_promised_locked(tier, tier.host_wanted) ? " but for what other devices are sure of, and " : ", and ");
    if (!spill_)
      return why + "there is no spill_to. Name a folder on a disk, or raise host_budget or " + budget +
             " by at least " + more + ".";
  }
  if (!spill_)
    return why + "there is no spill_to. Name a folder on a disk, or raise " + budget + " by at least " + more + ".";
  if (write_errors_ >= kErrorsToGiveUp)
    return why + "the disk fails (" + last_write_error_ + "). Name another folder in spill_to, or raise " + budget +
           " by at least " + more + ".";
  return why + "the spill tier is full (spill_budget is " + to_string(spill_->stats().budget) + "; " +
         last_write_error_ + "). Raise spill_budget or " + budget + " by at least " + more + ".";
}

/// An unpack looks for what can be dropped at once. What else is the store's alone by now stays where it is until a pack
/// looks, which sees to its leaving too: counted, it would be over the budget.
void StoreCore::look_again_locked(DeviceTier& tier, int64_t at_most, Look look) {
  using Place = DeviceTier::Place;
  const Resident* first_left = nullptr;  // once round, and no further
  for (; at_most > 0 && tier.list(Place::kElsewhere).front() != first_left; --at_most) {
    Resident& resident = *tier.list(Place::kElsewhere).front();
    const bool ours_alone = !resident.storage || (resident.storage->references() == 1 && !resident.shrunk());
    Place place = ours_alone ? place_by_states(resident) : Place::kElsewhere;
    if (look == Look::kForDroppable && place != Place::kClean && place != Place::kRedoable) place = Place::kElsewhere;
    if (place == Place::kElsewhere && first_left == nullptr) first_left = &resident;
    tier.move(resident, place);
  }
}

/// How much may be in memory alone. Steps repeat: what the last pass saved tells where this one is. Before its last
/// `budget` bytes all leaves at once, since all of it will have to; those last bytes stay, since the backward begins
/// with them. What has a recipe does not count, since it need not leave. Without a last pass: half and half. A plan has
/// named what stays: the rest leaves.
Bytes StoreCore::dirty_limit_locked(const DeviceTier& tier, const Pass* pass) const noexcept {
  if (pass != nullptr && pass->course_) return Bytes(0);
  if (pass == nullptr || tier.expected_pass == Bytes(0)) return tier.budget / 2;
  const Pass::OnDevice so_far = pass->on(tier.index);
  const Bytes saved = so_far.saved - so_far.redoable;
  return saved < tier.expected_pass - tier.expected_redoable - tier.budget ? Bytes(0) : tier.budget;
}

void StoreCore::begin_leaving_locked(DeviceTier& tier, Pass* pass, Work& work) {
  using Place = DeviceTier::Place;
  if (!may_leave_locked(tier)) return;
  Resident* next = nullptr;
  for (Resident* resident = tier.list(Place::kDirty).front(); resident != nullptr && resident->at_once;
       resident = next) {
    next = IntrusiveList<Resident>::next(*resident);
    leave_locked(*resident, work);
  }
  const Bytes limit = dirty_limit_locked(tier, pass);
  give_recipes_up_locked(tier, tier.held() - tier.bytes(Place::kLeaving) - tier.bytes(Place::kClean) -
                                   tier.bytes(Place::kDirty) - tier.bytes(Place::kPlanned) - tier.budget);
  const auto within_budget = [&] {
    return tier.held() - tier.bytes(Place::kLeaving) - tier.bytes(Place::kClean) <= tier.budget;
  };
  for (Resident* resident = tier.list(Place::kDirty).front(); resident != nullptr; resident = next) {
    if (tier.bytes(Place::kDirty) <= limit && within_budget()) return;
    next = IntrusiveList<Resident>::next(*resident);
    leave_locked(*resident, work);
  }
  // The plan's budget was for one pass, and this is what several save.
  for (Resident* resident = tier.list(Place::kPlanned).front(); resident != nullptr && !within_budget();
       resident = next) {
    next = IntrusiveList<Resident>::next(*resident);
    leave_locked(*resident, work);
  }
}

void StoreCore::leave_locked(Resident& resident, Work& work) {
  if (resident.shrunk()) return resident.tier->move(resident, DeviceTier::Place::kElsewhere);
  for (Record* record : resident.records) {
    if (record->state_ != RecordState::kResident || record->stays_) continue;
    if (auto alive = record->weak_from_this().lock()) {
      record->become(RecordState::kLeaving);
      if (resident.tier->link)
        work.orders().copies_out.push_back({std::move(alive), resident.storage});
      else
        work.orders().writes.push_back({std::move(alive), resident.storage});
    }
  }
  place_locked(resident);
}

void StoreCore::drop_clean_locked(DeviceTier& tier, Bytes target, Work& work) {
  using Place = DeviceTier::Place;
  for (Resident* resident = tier.list(Place::kClean).front(); resident != nullptr && resident->at_once && !closed_;
       resident = tier.list(Place::kClean).front()) {
    if (resident->storage->references() > 1)
      tier.move(*resident, Place::kElsewhere);
    else
      drop_locked(*resident, work);
  }
  while (!closed_ && tier.held() > target) {
    Resident* victim = pick_victim_locked(tier);
    if (victim == nullptr) return;
    if (victim->storage && victim->storage->references() > 1)
      tier.move(*victim, Place::kElsewhere);  // dropping it would free nothing
    else
      drop_locked(*victim, work);
  }
}

/// The clean resident that will be wanted last: what was unpacked already (a kept graph), then passes not in their
/// backward, oldest first.
Resident* StoreCore::pick_victim_locked(DeviceTier& tier) noexcept {
  constexpr int kLookedAt = 64;  // bounds the time; the list is nearly in order
  const auto& clean = tier.list(DeviceTier::Place::kClean);
  Resident* best = nullptr;
  std::tuple<int, uint32_t> best_rank;
  int looked_at = 0;
  for (Resident* resident = clean.front(); resident != nullptr && looked_at < kLookedAt;
       resident = clean.next(*resident), ++looked_at) {
    const Record& record = *resident->records.front();
    if (record.demanded_) continue;  // somebody has waited for it and is about to take it
    const std::tuple<int, uint32_t> rank{record.unpacked_ ? 0 : record.pass_->in_backward_ ? 2 : 1, record.slot_};
    if (best == nullptr || rank < best_rank) {
      best = resident;
      best_rank = rank;
    }
  }
  return best;
}

void StoreCore::drop_locked(Resident& resident, Work& work) {
  staging_full_ = false;
  const Few<Record*> records = resident.records;
  for (Record* record : records) drop_record_locked(*record, work);
}

void StoreCore::drop_record_locked(Record& record, Work& work) {
  if (record.state_ == RecordState::kResident) {
    if (options_.verify.value_or(false) && !record.tier_->link)
      record.fingerprint_ = XXH3_64bits(record.resident_->data() + (record.begin_ - record.resident_->origin).count(),
                                        static_cast<size_t>(record.bytes().count()));
    record.become(RecordState::kRedone);
    record.redone_ = true;
    detach_locked(record, work);
    return;
  }
  record.become(RecordState::kLower);
  record.left_ = true;
  if (record.tier_->link) part_locked(record, *record.resident_, work);
  detach_locked(record, work);
}

void StoreCore::write(const std::shared_ptr<Record>& record, const std::shared_ptr<DeviceStorage>& storage) {
  std::byte* first = nullptr;
  size_t size = 0;
  {
    std::lock_guard lock(mutex_);
    if (record->state_ != RecordState::kLeaving) return;
    first = record->resident_->data() + (record->begin_ - record->resident_->origin).count();
    size = static_cast<size_t>(record->bytes().count());
  }
  const RecordLayout layout = RecordLayout::of(first, Bytes(static_cast<int64_t>(size)), spill_->alignment());
  std::vector<std::byte> edges(layout.head + layout.tail);
  std::memcpy(edges.data(), first, layout.head);
  std::memcpy(edges.data() + layout.head, first + size - layout.tail, layout.tail);
  std::optional<uint64_t> fingerprint;
  if (options_.verify.value_or(false)) fingerprint = XXH3_64bits(first, size);
  {
    std::lock_guard lock(mutex_);
    record->layout_ = layout;
    record->edges_ = std::move(edges);
    record->fingerprint_ = fingerprint;
    if (layout.middle == 0) {  // too small for the disk: the edges are all of it
      record->become(RecordState::kClean);
      place_locked(*record->resident_);
      changed_.notify_all();
      return;
    }
    under_way_.emplace(record->id_, record.get());
  }
  const Bytes held = spill_->bytes();
  auto submitted = spill_->write(
      record->id_, {{first + layout.head, layout.middle}},
      [weak_core = weak_from_this(), id = record->id_, storage = storage](Result<SpilledItem> item) mutable {
        if (auto core = weak_core.lock()) core->write_done(id, std::move(item), std::move(storage));
      });
  std::lock_guard lock(mutex_);
  if (record->state_ != RecordState::kLeaving) return;  // done already
  if (submitted.ok()) {
    record->transfer_ = submitted.value();
  } else {
    under_way_.erase(record->id_);
    write_failed_locked(*record, submitted.failure(), held);
    changed_.notify_all();
  }
}

void StoreCore::write_done(uint64_t record_id, Result<SpilledItem> item, std::shared_ptr<DeviceStorage> storage) {
  {
    std::unique_lock lock(mutex_);
    Record* record = arrived_locked(lock, record_id, &item);
    // The record holds it too; one that died left it to us, and what may run the framework's code waits for a caller.
    if (storage && record == nullptr && !storage->plain()) buried_.push_back(std::move(storage));
    if (record != nullptr) storage = nullptr;
    if (record != nullptr) {
      if (item.ok()) {
        write_errors_ = 0;
        record->item_ = std::move(item).value();
        record->become(RecordState::kClean);
        place_locked(*record->resident_);
      } else {
        write_failed_locked(*record, item.failure());
      }
    }
  }
  storage.reset();
  changed_.notify_all();
}

void StoreCore::write_failed_locked(Record& record, const Failure& failure, Bytes held_before) {
  record.become(RecordState::kResident);
  place_locked(*record.resident_);
  note_write_error_locked(failure, held_before);
}

void StoreCore::note_write_error_locked(const Failure& failure, Bytes held_before) {
  if (failure.code == FailureCode::kNoSpace)
    note_full_locked(held_before);
  else
    ++write_errors_;
  last_write_error_ = failure.message;
  if (failure.code == FailureCode::kNoSpace && transfers_of_the_dead_ > 0) return;  // it will have room in a moment
  warn_once_locked("spill write", "a saved tensor could not be spilled and stays in memory: " + failure.message);
}

}  // namespace ebbtide
