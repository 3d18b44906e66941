// Records whose bytes are let go of without a copy, since a recipe makes them again.
#include <ebbtide/store/error.h>
#include <ebbtide/store/store_core.h>
#include <ebbtide/store/work.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <utility>

namespace ebbtide {

/// Within the budget recipes would be looked for in vain. As for leaving (dirty_limit_locked): the last pass tells what
/// this one will come to, and without one half of the budget is the mark.
bool StoreCore::recipes_help_locked(DeviceTier& tier, Pass& pass) const noexcept {
  if (closed_ || !options_.recompute.value_or(true)) return false;
  return tier.expected_pass > tier.budget || pass.on(tier.index).saved > tier.budget / 2 ||
         tier.held() > tier.budget / 2;
}

/// REQUIRES: recipes help.
StoreCore::RecipeWanted StoreCore::recipe_wanted_locked(const Record& record, bool planned) const noexcept {
  if (record.label_ != nullptr && record.label_->policy != Policy::kAuto)
    return record.label_->policy == Policy::kRecompute ? RecipeWanted::kAny : RecipeWanted::kNone;
  if (planned) return record.action_ == Action::kRecompute ? RecipeWanted::kAny : RecipeWanted::kNone;
  return costly_help_locked(*record.tier_) || weigh_costly_recipes_ ? RecipeWanted::kAny : RecipeWanted::kCheap;
}

/// Whether recipes that are not cheap are used without a plan.
bool StoreCore::costly_help_locked(const DeviceTier& tier) const noexcept {
  return use_costly_recipes_.load().value_or(!tier.link && !spill_);
}

void StoreCore::offer_recipe(Record& record, std::shared_ptr<const Recipe> recipe) {
  std::lock_guard lock(mutex_);
  if (record.recipe_ || record.state_ != RecordState::kResident || !options_.recompute.value_or(true)) return;
  int depth = 0;
  for (const auto& input : recipe->inputs()) {
    if (&input->core() != this || input->tier_ != record.tier_) return;
    depth = std::max(depth, depth_locked(*input));
  }
  if (depth >= kDeepestRecipe || rests_on_locked(*recipe, record)) return;
  record.recipe_ = std::move(recipe);
  note_recipe_bytes(record.recipe_->own_bytes());
  note_recipe_locked(record, record.recipe_->seconds());
  note_redoable_locked(record, redo_wanted_locked(record));
  DeviceTier& tier = *record.tier_;
  Resident& resident = *record.resident_;
  if (record.redoable_ && record.label_ != nullptr && record.label_->policy == Policy::kRecompute &&
      tier.place_of(resident) == DeviceTier::Place::kElsewhere)
    resident.at_once = true;
  place_locked(resident);
}

/// REQUIRES: it has a recipe.
bool StoreCore::redo_wanted_locked(const Record& record) const noexcept {
  if (record.label_ != nullptr && record.label_->policy != Policy::kAuto)
    return record.label_->policy == Policy::kRecompute;
  if (use_costly_recipes_.load() == true) return true;
  if (record.pass_->course_) return record.action_ == Action::kRecompute;
  return record.recipe_->cheap() || record.recipe_->asked_for() || costly_help_locked(*record.tier_);
}

void StoreCore::note_recipe_takes(Record& record, const Recipe& recipe, double seconds) {
  std::lock_guard lock(mutex_);
  if (record.recipe_.get() == &recipe) note_recipe_locked(record, seconds);
}

void StoreCore::keep_from_redo(Record& record) {
  std::lock_guard lock(mutex_);
  if (!record.recipe_ || !record.recipe_->asked_for()) return;
  if (Pass& pass = *record.pass_; !pass.ended_ && pass.logs_) pass.log_.forget_recipe(record.index_);
  note_redoable_locked(record, false);
  if (record.resident_) place_locked(*record.resident_);
}

bool StoreCore::awaits_redo(const Record& record) const {
  std::lock_guard lock(mutex_);
  return record.state_ == RecordState::kRedone;
}

bool StoreCore::give_recipe_up(Record& record) {
  std::lock_guard lock(mutex_);
  note_redoable_locked(record, false);
  if (record.resident_) place_locked(*record.resident_);
  return record.state_ == RecordState::kRedone;
}

void StoreCore::let_leave(Record& record) {
  DeviceTier& tier = *record.tier_;
  {
    std::lock_guard lock(mutex_);
    Resident* resident = record.resident_.get();
    if (resident != nullptr && tier.place_of(*resident) == DeviceTier::Place::kElsewhere && resident->storage &&
        resident->storage->references() == 1)
      tier.move(*resident, place_by_states(*resident));
  }
  settle(record.pass_.get(), tier);
}

void StoreCore::note_unequal_redo(const char* op) {
  std::lock_guard lock(mutex_);
  ++unequal_redos_[op];
}

int StoreCore::depth_locked(const Record& record) noexcept {
  int depth = 0;
  if (record.recipe_)
    for (const auto& input : record.recipe_->inputs()) depth = std::max(depth, 1 + depth_locked(*input));
  return depth;
}

bool StoreCore::rests_on_locked(const Recipe& recipe, const Record& record) noexcept {
  return std::ranges::any_of(recipe.inputs(), [&](const auto& input) {
    return input.get() == &record || (input->recipe_ && rests_on_locked(*input->recipe_, record));
  });
}

void StoreCore::note_redoable_locked(Record& record, bool redoable) noexcept {
  if (std::exchange(record.redoable_, redoable) == redoable) return;
  Bytes& of_pass = record.pass_->on(record.tier_->index).redoable;
  redoable ? of_pass += record.footprint_ : of_pass -= record.footprint_;
}

/// Whether nobody but the store can write to the record's bytes: the version that a recipe read is there to stay.
/// (Unless a hook that was handed them writes to them; a redo that finds that raises.)
bool StoreCore::sealed_locked(const Record& record) noexcept {
  switch (record.state_) {
    case RecordState::kLower:
    case RecordState::kReturning:
    case RecordState::kRedone:
      return true;
    case RecordState::kLost:
    case RecordState::kDead:
      return false;
    case RecordState::kResident:
    case RecordState::kLeaving:
    case RecordState::kClean:
      break;
  }
  const Resident& resident = *record.resident_;
  return !resident.storage || (resident.storage->references() == 1 && !resident.shrunk());
}

/// All its records are in a lower copy or have recipes whose inputs can change no more.
bool StoreCore::may_be_redone_locked(const Resident& resident) noexcept {
  return std::ranges::all_of(resident.records, [](const Record* record) {
    if (record->state_ == RecordState::kClean) return true;
    if (record->state_ != RecordState::kResident || !record->redoable_) return false;
    const Recipe& recipe = *record->recipe_;
    return recipe.begin() <= record->begin_ && record->end_ <= recipe.end() && recipe.inputs_unchanged() &&
           (recipe.asked_for() ||
            std::ranges::all_of(recipe.inputs(), [](const auto& input) { return sealed_locked(*input); }));
  });
}

void StoreCore::drop_redoable_locked(DeviceTier& tier, Bytes target, Work& work) {
  constexpr int kLookedAt = 64;  // bounds the time where many wait for their inputs
  const auto& redoable = tier.list(DeviceTier::Place::kRedoable);
  int looked_at = 0;
  Resident* next = nullptr;
  for (Resident* resident = redoable.front();
       resident != nullptr && looked_at < kLookedAt && (tier.held() > target || resident->at_once) && !closed_;
       resident = next, ++looked_at) {
    next = IntrusiveList<Resident>::next(*resident);
    if (resident->storage->references() > 1 || resident->shrunk())
      tier.move(*resident, DeviceTier::Place::kElsewhere);  // dropping it would free nothing
    else if (may_be_redone_locked(*resident))
      drop_locked(*resident, work);
  }
}

/// Where inputs are still in other hands and the budget cannot wait: the oldest leave like any other record.
void StoreCore::give_recipes_up_locked(DeviceTier& tier, Bytes missing) {
  const auto& redoable = tier.list(DeviceTier::Place::kRedoable);
  while (missing > Bytes(0) && !redoable.empty()) {
    Resident& resident = *redoable.front();
    missing -= resident.bytes;
    for (Record* record : resident.records) note_redoable_locked(*record, false);
    place_locked(resident);
  }
}

void StoreCore::note_recipe_bytes(Bytes change) noexcept {
  const int64_t now = recipe_bytes_.fetch_add(change.count()) + change.count();
  int64_t peak = recipe_bytes_peak_.load();
  while (now > peak && !recipe_bytes_peak_.compare_exchange_weak(peak, now)) {
  }
}

std::shared_ptr<const Recipe> StoreCore::recipe_for_unpack_locked(Record& record, StreamId stream, Work& work) {
  DeviceTier& tier = *record.tier_;
  look_again_locked(tier, 8, Look::kForDroppable);
  drop_redoable_locked(tier, tier.budget, work);
  drop_clean_locked(tier, tier.budget, work);
  record.unpacked_ = true;
  prefetch_locked(*record.pass_, tier, {stream, record}, work);
  return record.recipe_;
}

std::shared_ptr<DeviceStorage> StoreCore::redone(Record& record, std::shared_ptr<DeviceStorage> mine, StreamId stream,
                                                 double seconds) {
  DeviceTier& tier = *record.tier_;
  std::optional<uint64_t> left_with;
  Bytes begin, end;
  EventPtr made_at;  // other streams wait for it
  if (tier.link) {
    Result<EventPtr> event = tier.device->record(stream);
    if (!event.ok()) return mine;  // for this caller alone: the next redoes it
    made_at = std::move(event).value();
    mark_redo(record, stream, Redo::kEnded);
  }
  {
    std::lock_guard lock(mutex_);
    stats_.recompute_s += seconds;
    if (trace_)
      trace_call_locked(
          "redo",
          std::chrono::steady_clock::now() -
              std::chrono::duration_cast<std::chrono::steady_clock::duration>(std::chrono::duration<double>(seconds)),
          traced(record));
    note_redo_locked(record, seconds);
    unreserve_locked(record);
    const Bytes origin = record.recipe_->begin();
    begin = record.begin_ - origin;
    end = record.end_ - origin;
    if (record.recipe_->to_the_last_byte()) left_with = record.fingerprint_;
    Resident* known = record.state_ == RecordState::kRedone ? by_storage_.find(mine->identity()) : nullptr;
    if (known != nullptr) {  // of another record of the same storage, which came with it
      if (known->origin != origin || known->tier != &tier || known->stream != stream) return mine;
      record.resident_ = known->records.front()->resident_;
      known->records.push_back(&record);
      record.packed_ = std::move(made_at);
      record.become(RecordState::kResident);
      tier.move(*known, DeviceTier::Place::kElsewhere);
    } else if (record.state_ == RecordState::kRedone) {
      auto made = std::make_shared<Resident>();
      made->tier = &tier;
      made->stream = stream;
      made->storage = mine;
      made->identity = mine->identity();
      made->returned = true;
      made->handed_out = tier.link != nullptr;  // of host memory only what came back is counted, see ReturnedMemory
      made->origin = origin;
      made->bytes = mine->bytes();
      made->records.push_back(&record);
      by_storage_.insert(*made);                       // a double backward saves what it unpacks
      tier.add(*made, DeviceTier::Place::kElsewhere);  // in the caller's hands
      record.resident_ = std::move(made);
      record.packed_ = std::move(made_at);
      record.become(RecordState::kResident);
      tier.note_peak();
    } else if (record.resident_ && record.resident_->storage && record.resident_->origin == origin &&
               record.resident_->stream == stream) {
      return record.resident_->storage;
    }
  }
  if (left_with && !tier.link &&
      XXH3_64bits(mine->data() + begin.count(), static_cast<size_t>((end - begin).count())) != *left_with)
    throw CorruptTensor("a saved tensor of " + to_string(end - begin) +
                        " was computed again with other bytes than it left with (verify)");
  return mine;
}

}  // namespace ebbtide
