// What enters a store and dies in it, its passes, and its end.
#include <ebbtide/store/error.h>
#include <ebbtide/store/report.h>
#include <ebbtide/store/store_core.h>
#include <ebbtide/store/work.h>
#include <ebbtide/transfer/nvtx_range.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <optional>
#include <utility>

namespace ebbtide {

void StoreCore::pump() {
  Few<std::shared_ptr<DeviceLink>> links;
  {
    std::lock_guard lock(mutex_);
    for (const DeviceTier& tier : tiers_)
      if (tier.link) links.push_back(tier.link);
  }
  for (const auto& link : links) link->pump();
  if (!links.empty()) sink_ahead();
}

StoreCore::Packed StoreCore::pack(std::shared_ptr<Pass>& pass, const View& view, const Hold& hold) {
  std::shared_ptr<Record> record;
  Bytes origin;
  bool crowded = false;
  bool wants_recipes = false;
  RecipeWanted wanted = RecipeWanted::kNone;
  Trace::Time began{};  // where there is a trace
  DeviceTier& tier = tier_of(view);
  std::optional<NvtxRange> range;
  if (tier.link) range.emplace(NvtxRange::Of::kPack, view.footprint);
  EventPtr packed;
  if (!tier.link) {
    open_staging(std::nullopt);
  } else {
    const bool goes_on = pass && pass->takes_packs_;
    if (!goes_on) learn_of_devices();
    // Before the store's lock: later would be right too, but the copy would wait for work that it need not.
    packed = mark_pack(tier, goes_on ? pass.get() : nullptr, view.stream);
  }
  EventPtr produced = view.written_later ? nullptr : packed;
  const std::optional<MemoryUsage> usage = memory_usage(tier);
  {
    std::lock_guard lock(mutex_);
    if (trace_) began = std::chrono::steady_clock::now();
    by_storage_.prefetch(view.storage);
    stats_.packed.add(view.footprint);
    if (!pass || !pass->takes_packs_) {
      pass = std::make_shared<Pass>(shared_from_this(), next_pass_++, worth_a_log_locked());
      pass->sequence_.reserve(longest_sequence_);
      pass->made_.reserve(longest_sequence_);
      for (DeviceTier& any : tiers_) any.begin_pass();
      if (pass->logs_) {
        pass->log_ = std::exchange(spare_log_, {});
        pass->disk_before_ = disk_moved();
      }
      if (trace_) trace_->pass_opened(pass->stats_.number, pass->began_);
    }
    if (usage) note_memory_locked(tier, *pass, usage, {PeakGoal::Phase::kForward, view.op, view.region});
    look_again_locked(tier, 8);
    Resident* resident = by_storage_.find(view.storage);
    if (resident != nullptr) origin = resident->origin;
    const Bytes begin = view.begin + origin;
    const Bytes end = view.end + origin;
    if (resident != nullptr) {
      for (Record* other : resident->records) {
        if (other->version_counter_ != view.version_counter || other->version_ != view.version) continue;
        const bool inside = other->holds(begin, end, view.rows);
        if (!inside && other->state_ != RecordState::kResident)
          continue;  // its bytes are on their way: too late to widen it
        record = other->weak_from_this().lock();
        if (!record) continue;
        if (!inside) {
          record->packed_ = produced;
          record->begin_ = std::min(record->begin_, begin);
          record->end_ = std::max(record->end_, end);
          record->rows_ = {};
        }
        stats_.deduplicated.add(view.footprint);
        if (record->pass_ == pass) {
          pass->sequence_.push_back(record.get());
          pass->sequence_[record->slot_] = nullptr;
          record->slot_ = static_cast<uint32_t>(pass->sequence_.size() - 1);
        }
        break;
      }
    }
    if (!record) {
      // First what may find no memory: a record that has a tier was taken in, and goes out by forget().
      const auto slot = static_cast<uint32_t>(pass->sequence_.size());
      const auto index = static_cast<uint32_t>(pass->made_.size());
      pass->sequence_.push_back(nullptr);
      pass->made_.push_back(nullptr);
      Pass::OnDevice& on_device = pass->on(tier.index);
      record = std::allocate_shared<Record>(BlockAllocator<Record>(records_), pass, next_record_++);
      if (resident != nullptr) {
        resident->records.push_back(record.get());
        record->resident_ = resident->records.front()->resident_;
      } else {
        auto made = std::allocate_shared<Resident>(BlockAllocator<Resident>(residents_));
        made->tier = &tier;
        made->stream = view.stream;
        made->storage = hold();
        made->identity = view.storage;
        made->bytes = view.footprint;
        made->at_once = view.region != nullptr && view.region->leaves_at_once();
        made->records.push_back(record.get());
        by_storage_.insert(*made);
        record->resident_ = std::move(made);
      }
      record->version_counter_ = view.version_counter;
      record->version_ = view.version;
      record->begin_ = begin;
      record->end_ = end;
      if (tier.link && view.rows.pay()) record->rows_ = view.rows;
      record->footprint_ = view.footprint;
      record->op_ = view.op;
      record->slot_ = slot;
      pass->sequence_[slot] = record.get();
      record->tier_ = &tier;
      record->stream_ = view.stream;
      record->packed_ = std::move(produced);
      record->lower_.record = record.get();
      record->index_ = index;
      pass->made_[index] = record.get();
      record->label_ = pass->label_ = view.region;
      if (view.region != nullptr && view.region->policy != Policy::kAuto)
        record->action_ = view.region->policy == Policy::kKeep ? Action::kKeep : Action::kOffload;
      ++pass->live_;
      live_.push_back(*record);
      stats_.saved.add(view.footprint);
      tier.alive += view.footprint;
      pass->stats_.saved.add(view.footprint);
      on_device.saved += view.footprint;
      if (resident != nullptr)
        tier.move(*resident, DeviceTier::Place::kElsewhere);
      else
        tier.add(*record->resident_, DeviceTier::Place::kElsewhere);
      if (pass->logs_) note_pack_locked(*record, *pass, view);
      if (pass->logs_ && tier.link) mark_pack_locked(*pass, tier, view.stream, packed);
    }
    const bool planned = pass->course_ && !pass->learns_;
    wants_recipes = planned ? pass->course_->recomputes : recipes_help_locked(tier, *pass);
    if (view.region != nullptr && view.region->policy == Policy::kRecompute && options_.recompute.value_or(true))
      wants_recipes = true;
    if (wants_recipes && !record->recipe_) wanted = recipe_wanted_locked(*record, planned);
    crowded = tier.some_at_once() || tier.held() > tier.budget ||
              tier.bytes(DeviceTier::Place::kDirty) > dirty_limit_locked(tier, pass.get()) || !warnings_.empty() ||
              !buried_.empty() || (trace_ && trace_->complete());
    if (crowded)
      tier.note_alive();
    else
      tier.note_peak();
  }
  if (crowded)
    settle(pass.get(), tier);
  else if (tier.link)
    pump();
  if (began != Trace::Time()) {
    std::lock_guard lock(mutex_);
    if (trace_) trace_call_locked("pack", began, traced(*record));
  }
  return {std::move(record), origin, wants_recipes, wanted};
}

DeviceTier& StoreCore::tier_of(const View& view) {
  if (view.device == 0) return host_;
  std::lock_guard lock(mutex_);
  return tiers_.at(static_cast<size_t>(view.device));
}

void StoreCore::note_passed_through(const char* reason, Bytes footprint) {
  std::lock_guard lock(mutex_);
  stats_.packed.add(footprint);
  stats_.passed_through.add(footprint);
  passed_through_[reason].add(footprint);
}

bool StoreCore::task_began(Record& record, int task) {
  Pass& pass = record.pass();
  if (pass.latest_task_.load(std::memory_order_relaxed) == task) return false;
  Work work(*this);
  std::unique_lock lock(mutex_);
  pass.latest_task_.store(task, std::memory_order_relaxed);
  if (!pass.tasks_.insert(task).second) return false;
  pass.in_backward_ = true;
  if (trace_)
    trace_->begin(Trace::Flow::kBackward, static_cast<uint64_t>(pass.stats_.number), std::chrono::steady_clock::now(),
                  {});
  for (const DeviceTier& tier : tiers_) {
    pass.on(tier.index).next = pass.sequence_.size();
    pass.on(tier.index).turn = 0;
  }
  // What was in other hands to the end of the forward (autocast's cache of cast weights) may go now.
  for (DeviceTier& tier : tiers_) {
    if (pass.on(tier.index).saved == Bytes(0)) continue;
    look_again_locked(tier, kAll, Look::kForDroppable);
    drop_redoable_locked(tier, tier.budget, work);
    drop_clean_locked(tier, tier.budget, work);
  }
  lock.unlock();
  work.run();
  return true;
}

void StoreCore::task_ended(Pass& pass, int task, std::optional<StreamId> stream) noexcept {
  mark_end(pass, task, stream);
  Usages usages;
  std::optional<Planner::Task> to_plan;
  try {
    usages = memory_at_end();
  } catch (const std::exception&) {
    // No memory to learn with, here and below: passes go on as they did.
  }
  {
    std::lock_guard lock(mutex_);
    pass.tasks_.erase(task);
    pass.latest_task_.store(-1, std::memory_order_relaxed);
    if (!pass.tasks_.empty()) return;  // the graph task around a reentrant one
    pass.in_backward_ = false;
    pass.takes_packs_ = false;
    if (!pass.ended_) {
      for (DeviceTier& tier : tiers_) {
        if (pass.on(tier.index).saved == Bytes(0)) continue;  // a pass of another device's
        tier.expected_pass = pass.on(tier.index).saved;
        tier.expected_redoable = pass.on(tier.index).redoable;
      }
      note_wants_locked(pass);
      try {
        note_memory_at_end_locked(pass, usages);
        to_plan = learn_locked(pass);
      } catch (const std::exception&) {
      }
    }
    end_pass_locked(pass);
  }
  if (to_plan) adopt(*to_plan);
  learn_of_devices();
  write_trace(EvenUnfinished::kNo);
}

void StoreCore::scope_ended(const std::shared_ptr<Pass>& pass) {
  if (pass) {
    std::lock_guard lock(mutex_);
    pass->takes_packs_ = false;
    if (trace_)
      trace_->end(Trace::Flow::kForward, static_cast<uint64_t>(pass->stats_.number), std::chrono::steady_clock::now());
    if (pass->live_ == 0) end_pass_locked(*pass);
    // Once round the whole list: with the scope, its local variables are gone.
    for (DeviceTier& tier : tiers_) look_again_locked(tier, kAll);
  }
  for (DeviceTier* tier : all_tiers()) settle(pass.get(), *tier, Until::kAllIsGoneThatLeavesAtOnce);
}

Few<DeviceTier*> StoreCore::all_tiers() {
  std::lock_guard lock(mutex_);
  Few<DeviceTier*> all;
  for (DeviceTier& tier : tiers_) all.push_back(&tier);
  return all;
}

void StoreCore::end_pass_locked(Pass& pass) noexcept {
  if (std::exchange(pass.ended_, true)) return;
  for (DeviceTier& tier : tiers_) {
    if (!tier.goal) continue;
    tier.goal->pass_died(pass.stats_.number);
    tier.looks.store(tier.goal->looks(), std::memory_order_relaxed);
  }
  longest_sequence_ = std::max(longest_sequence_, pass.sequence_.size());
  if (trace_) trace_->pass_ended(pass.stats_.number, std::chrono::steady_clock::now());
  if (pass.logs_) {
    spare_log_ = std::exchange(last_log_, std::move(pass.log_));
    spare_log_.clear();
  }
  if (pass.stats_.saved.tensors == 0) return;  // all its packs were views of older records
  ++stats_.passes;
  last_pass_ = pass.stats_;
  for (DeviceTier& tier : tiers_) note_saved_locked(tier, pass.on(tier.index).saved);
}

/// A budget that is a share is one of the largest pass seen.
void StoreCore::note_saved_locked(DeviceTier& tier, Bytes saved) noexcept {
  tier.largest_pass_saved = std::max(tier.largest_pass_saved, saved);
  const Share* share = options_.device_budget ? std::get_if<Share>(&*options_.device_budget) : nullptr;
  if (share == nullptr) return;
  tier.budget = Bytes(static_cast<int64_t>(static_cast<double>(tier.largest_pass_saved.count()) * share->value));
  tier.budget_given = true;
}

void StoreCore::forget(Record& record) noexcept {
  if (record.tier_ == nullptr) return;  // there was no memory to take it in
  const auto now = record.pass_->logs_ ? std::chrono::steady_clock::now() : PassLog::Time();
  Work work(*this);
  bool withdrawn = false;
  bool waited_for = false;
  {
    std::lock_guard lock(mutex_);
    Pass& pass = *record.pass_;
    const bool spilled = record.left_ && (record.spilled_ || !record.tier_->link);
    const auto count_in = [&](auto& stats) -> Count& {
      return spilled ? stats.spilled : record.left_ ? stats.offloaded : record.redone_ ? stats.recomputed : stats.kept;
    };
    count_in(stats_).add(record.footprint_);
    record.tier_->alive -= record.footprint_;
    if (record.recipe_) note_recipe_bytes(Bytes(0) - record.recipe_->own_bytes());
    if (record.redone_ && !record.left_) recomputed_ops_[record.recipe_->op()].add(record.footprint_);
    count_in(pass.stats_).add(record.footprint_);
    if (record.label_ != nullptr) count_in(regions_[record.label_]).add(record.footprint_);
    if (record.tier_->link) forget_copies_locked(record, work);
    detach_locked(record, work);
    if (!under_way_.empty() && under_way_.erase(record.id_) > 0) {
      ++transfers_of_the_dead_;
      record.item_ = {};  // what it has on disk is no more when the transfer is over
    }
    withdrawn = record.transfer_.has_value();
    if (withdrawn) work.orders().cancelled.push_back(*record.transfer_);
    staging_full_ = false;
    if (!buried_.empty()) std::swap(work.exhumed, buried_);
    record.become(RecordState::kDead);
    live_.remove(record);
    unreserve_locked(record);
    if (pass.logs_ && !pass.ended_) pass.log_.death(record.index_, now);
    pass.made_[record.index_] = nullptr;
    pass.sequence_[record.slot_] = nullptr;
    if (--pass.live_ == 0 && pass.tasks_.empty()) {
      pass.takes_packs_ = false;
      end_pass_locked(pass);
    }
    if (pass.in_backward_ && !in_child_) prefetch_locked(pass, host_, {kHostStream}, work);
    if (trace_) trace_levels_locked(std::chrono::steady_clock::now());
    waited_for = waiting_ > 0;
  }
  if (waited_for) changed_.notify_all();  // there is room
  if (in_child_.load(std::memory_order_relaxed)) work.leave_to_parent();
  work.run();
  if (!record.tier_->link && !withdrawn) return;
  std::lock_guard lock(mutex_);
  for (auto& storage : std::exchange(buried_, {}))  // what was cancelled may have let go of this record's memory
    work.exhumed.push_back(std::move(storage));
}

Record* StoreCore::arrived_locked(std::unique_lock<std::mutex>& lock, uint64_t record_id,
                                  Result<SpilledItem>* written) noexcept {
  const auto found = under_way_.find(record_id);
  if (found == under_way_.end()) {
    if (written != nullptr) {  // who waits for the transfers of the dead looks for room when they are no more
      lock.unlock();
      *written = SpilledItem();
      lock.lock();
    }
    --transfers_of_the_dead_;
    return nullptr;
  }
  Record* record = found->second;
  under_way_.erase(found);
  record->transfer_.reset();
  return record;
}

void StoreCore::detach_locked(Record& record, Work& work) {
  std::shared_ptr<Resident> resident = std::move(record.resident_);
  record.resident_ = nullptr;
  if (!resident) return;
  resident->records.erase(&record);
  if (!resident->records.empty()) {
    place_locked(*resident);
    return;
  }
  resident->tier->remove(*resident);
  if (resident->handed_out && resident->tier->link && resident->storage->references() > 1)
    resident->tier->note_outlived(*resident);
  else if (resident->storage &&
           (record.state_ == RecordState::kLeaving || (record.lower_.leaving && record.lower_.leaving->storage)))
    resident->tier->note_copied_still(*resident);
  if (resident->identity != nullptr) by_storage_.erase(resident->identity);
  work.dropped.push_back(std::move(resident));
}

void StoreCore::place_locked(Resident& resident, bool to_front) noexcept {
  const DeviceTier::Place before = resident.tier->place_of(resident);
  const DeviceTier::Place place = place_by_states(resident);
  if (before != DeviceTier::Place::kElsewhere && place != before) resident.tier->move(resident, place, to_front);
}

DeviceTier::Place StoreCore::place_by_states(const Resident& resident) noexcept {
  using Place = DeviceTier::Place;
  Place place = Place::kClean;
  for (const Record* record : resident.records) {
    if (record->state_ == RecordState::kReturning) return Place::kReturning;
    if (record->state_ == RecordState::kLeaving) place = Place::kLeaving;
    if (record->state_ != RecordState::kResident || place == Place::kLeaving || place == Place::kDirty) continue;
    if (record->redoable_)
      place = place == Place::kPlanned ? place : Place::kRedoable;
    else
      place = record->action_ == Action::kKeep ? Place::kPlanned : Place::kDirty;
  }
  return place;
}

void StoreCore::close() {
  refuse_packs();
  closed_ = true;
  if (in_child_) return;  // what is under way comes home to the parent
  for (;;) {
    Work work(*this);
    {
      std::unique_lock lock(mutex_);
      std::swap(work.exhumed, buried_);
      const auto under_way = [&] {
        return host_.bytes(DeviceTier::Place::kLeaving) + host_.bytes(DeviceTier::Place::kReturning) + sinking_ >
                   Bytes(0) ||
               lifting_ > 0;
      };
      for (Record* record = live_.front(); record != nullptr; record = live_.next(*record)) {
        if (record->tier_->link)
          lift_for_close_locked(*record, work);
        else if (record->state_ == RecordState::kLower && !record->lost_)
          begin_return_locked(*record, kHostStream, Urgency::kDemand, work);
      }
      if (work.empty()) {
        if (!under_way()) break;
        wait(lock, nullptr, StallCause::kClose, nullptr, [&] { return !under_way(); });
        continue;
      }
    }
    work.run();
  }
  if (spill_) spill_->close();
  write_trace(EvenUnfinished::kYes);
  deliver_warnings();
}

const char* StoreCore::name_of(StallCause cause) noexcept {
  switch (cause) {
    case StallCause::kRoom:
      return "room";
    case StallCause::kHostRoom:
      return "host room";
    case StallCause::kCopies:
      return "copies";
    case StallCause::kReturn:
      return "return";
    case StallCause::kClose:
      return "close";
  }
  return "?";
}

/// Returns the seconds that it took. `wanted`: what is waited for, if it is one record; it stays until then.
double StoreCore::wait(std::unique_lock<std::mutex>& lock, Pass* stalled, StallCause cause, Record* wanted,
                       const std::function<bool()>& done) {
  using Steady = std::chrono::steady_clock;
  const auto begin = Steady::now();
  const std::shared_ptr<Waiter> waiter = waiter_;
  lock.unlock();
  void* released = waiter ? waiter->release() : nullptr;
  lock.lock();
  try {
    while (!done()) {
      ++waiting_;
      const std::cv_status woken = changed_.wait_for(lock, std::chrono::milliseconds(100));
      --waiting_;
      if (woken != std::cv_status::timeout) continue;
      const bool warned = warn_of_silence_locked();
      if (!warned && !waiter) continue;
      lock.unlock();
      if (warned) deliver_warnings();  // the wait may be a long one
      if (waiter) waiter->check();
      lock.lock();
    }
  } catch (...) {  // Waiter::check(), or what takes a warning
    if (lock.owns_lock()) lock.unlock();
    if (waiter) waiter->resume(released);
    lock.lock();
    // Nobody comes to take it now: it may be let go of again. Who else waits for it demands it once more, if need be.
    if (wanted != nullptr) wanted->demanded_ = false;
    throw;
  }
  lock.unlock();
  if (waiter) waiter->resume(released);
  lock.lock();
  const Steady::time_point end = Steady::now();
  const double seconds = std::chrono::duration<double>(end - begin).count();
  stats_.stall_s += seconds;
  stalls_[name_of(cause)].add(seconds);
  if (wanted != nullptr && wanted->op_ != nullptr) returns_waited_for_[wanted->op_].add(seconds);
  const RegionLabel* region = wanted != nullptr ? wanted->label_ : stalled != nullptr ? stalled->label_ : nullptr;
  if (region != nullptr) stalled_regions_[region].add(seconds);
  if (trace_) {
    Trace::Of of = wanted != nullptr ? traced(*wanted) : Trace::Of();
    of.cause = name_of(cause);
    trace_->call("wait", begin, end, of);
  }
  if (stalled != nullptr) {
    stalled->stats_.stall_s += seconds;
    stalled->log_.pause(seconds);
  }
  return seconds;
}

/// Of a disk that hangs: what it was given stays its, so all that can be done is to say so. True: there is something new
/// to say.
bool StoreCore::warn_of_silence_locked() {
  constexpr double kTooLong = 10;  // seconds
  if (!spill_) return false;
  const size_t before = warnings_.size();
  for (const SpillFolderStats& folder : spill_->stats().folders) {
    if (folder.silent_s < kTooLong) continue;
    warn_once_locked("silent " + folder.folder, "the disk of " + folder.folder + " has not answered for " +
                                                    std::to_string(static_cast<int>(folder.silent_s)) +
                                                    " s; a saved tensor is waited for");
  }
  return warnings_.size() > before;
}

void StoreCore::warn_once_locked(const std::string& key, std::string text) {
  if (std::find(warned_.begin(), warned_.end(), key) != warned_.end()) return;
  warned_.push_back(key);
  warnings_.push_back(std::move(text));
}

void StoreCore::warn(std::string text) {
  std::lock_guard lock(mutex_);
  warn_once_locked(text, text);
}

void StoreCore::deliver_warnings() {
  write_trace(EvenUnfinished::kNo);
  std::vector<std::string> texts;
  WarningHandler handler;
  {
    std::lock_guard lock(mutex_);
    texts.swap(warnings_);
    handler = warning_handler_;
  }
  for (const std::string& text : texts) {
    if (handler)
      handler(text);
    else
      std::fprintf(stderr, "ebbtide: %s\n", text.c_str());
  }
}

void StoreCore::set_warning_handler(WarningHandler handler) {
  std::lock_guard lock(mutex_);
  warning_handler_ = std::move(handler);
}

void StoreCore::set_waiter(std::shared_ptr<Waiter> waiter) {
  std::lock_guard lock(mutex_);
  waiter_ = std::move(waiter);
}

std::shared_ptr<void> StoreCore::extension(const std::function<std::shared_ptr<void>()>& make) {
  std::lock_guard lock(mutex_);
  if (!extension_) extension_ = make();
  return extension_;
}

PassStats StoreCore::last_pass() const {
  std::lock_guard lock(mutex_);
  return last_pass_;
}

std::string StoreCore::report() const {
  return render_report(stats(), last_pass(),
                       {.min_bytes = min_bytes_,
                        .spill = spill_ ? spill_->stats().description : std::string(),
                        .plan = plan(),
                        .plan_file = options_.plan});
}

}  // namespace ebbtide
