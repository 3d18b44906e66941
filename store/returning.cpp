// How saved tensors come back: when autograd asks, and before.
#include <ebbtide/store/error.h>
#include <ebbtide/store/store_core.h>
#include <ebbtide/store/work.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

namespace ebbtide {

/// Brings what the next unpacks read into the processor's cache: the forward wrote it long ago. Backwards go through a
/// pass in reverse.
void StoreCore::warm_up_locked(const Record& record) const noexcept {
  if (record.resident_->identity != nullptr) by_storage_.prefetch(record.resident_->identity);  // its death is near
  const std::vector<Record*>& sequence = record.pass_->sequence_;
  const auto before = [&](size_t steps) { return record.slot_ >= steps ? sequence[record.slot_ - steps] : nullptr; };
  if (const Record* far = before(3)) {
    for (size_t line = 0; line < sizeof(Record); line += 64)
      __builtin_prefetch(reinterpret_cast<const std::byte*>(far) + line, /*rw=*/1);
  }
  if (const Record* near = before(2); near != nullptr && near->resident_) {
    for (size_t line = 0; line < sizeof(Resident); line += 64)
      __builtin_prefetch(reinterpret_cast<const std::byte*>(near->resident_.get()) + line, /*rw=*/1);
  }
  if (const Record* next = before(1); next != nullptr && next->resident_) {
    __builtin_prefetch(next->resident_->storage.get());
    __builtin_prefetch(next->resident_->identity, /*rw=*/1);
  }
}

StoreCore::Unpacked StoreCore::unpack(Record& record, StreamId stream, AskedBy by) {
  if (by == AskedBy::kBackward && record.pass_->logs_) note_unpack(record, stream);
  if (const auto usage = memory_usage(*record.tier_)) {
    std::lock_guard lock(mutex_);
    note_memory_locked(*record.tier_, *record.pass_, usage, {PeakGoal::Phase::kBackward, record.op_, record.label_});
  }
  if (record.tier_->link) return unpack_from_device(record, stream);
  double waited_s = 0;
  bool refused = false;  // memory for it
  Trace::Time began{};
  for (;;) {
    Work work(*this);
    std::unique_lock lock(mutex_);
    if (trace_ && began == Trace::Time()) began = std::chrono::steady_clock::now();
    if (!buried_.empty()) std::swap(work.exhumed, buried_);
    switch (record.state_) {
      case RecordState::kResident:
      case RecordState::kLeaving:
      case RecordState::kClean: {
        Resident& resident = *record.resident_;
        record.unpacked_ = true;
        record.demanded_ = false;
        Unpacked unpacked{resident.storage, resident.memory, resident.origin};
        unpacked.waited_s = waited_s;
        prefetch_locked(*record.pass_, host_, kHostStream, work);
        warm_up_locked(record);
        unpacked.burst = host_.note_peak() && host_.handed_over() > host_.budget;
        if (trace_) trace_call_locked("unpack", began, traced(record));
        const bool check = record.fingerprint_ && unpacked.memory;
        lock.unlock();
        work.run();
        if (check) check_fingerprint(record, unpacked.memory->data());
        return unpacked;
      }
      case RecordState::kLower:
        look_again_locked(host_, 8, Look::kForDroppable);
        if (record.lost_ && std::exchange(refused, true)) {
          const Failure why = *std::exchange(record.lost_, std::nullopt);
          lock.unlock();
          throw_lost(why);
        }
        drop_redoable_locked(host_, host_.budget, work);
        // Where the system had no memory for it, all that can be fetched again makes room.
        drop_clean_locked(host_, record.lost_ ? Bytes(0) : host_.budget, work);
        begin_return_locked(record, kHostStream, Urgency::kDemand, work);
        break;
      case RecordState::kReturning:
        if (in_child_) {
          lock.unlock();
          throw_lost({FailureCode::kUnsupported, 0,
                      "a saved tensor was on its way back from disk to the process that forked this one"});
        }
        record.demanded_ = true;
        if (record.transfer_) work.orders().demanded.push_back(*record.transfer_);
        prefetch_locked(*record.pass_, host_, kHostStream, work);
        lock.unlock();
        work.run();
        lock.lock();
        waited_s += wait(lock, record.pass_.get(), StallCause::kReturn, &record,
                         [&] { return record.state_ != RecordState::kReturning; });
        continue;
      case RecordState::kRedone: {
        Unpacked unpacked{.recipe = recipe_for_unpack_locked(record, kHostStream, work)};
        lock.unlock();
        work.run();
        return unpacked;
      }
      case RecordState::kLost: {
        const Failure why = *record.lost_;
        lock.unlock();
        throw_lost(why);
      }
      case RecordState::kDead:
        std::abort();  // a hook that outlived its own record
    }
    lock.unlock();
    work.run();
  }
}

void StoreCore::throw_lost(const Failure& why) {
  if (why.code == FailureCode::kCorrupt) throw CorruptTensor(why.message);
  if (why.code == FailureCode::kOverCapacity) throw OutOfBudget(why.message);
  if (why.code == FailureCode::kDeviceLost) throw DeviceError(why.message);
  throw SpillError(why.message);
}

std::shared_ptr<DeviceStorage> StoreCore::adopt(Record& record, const std::shared_ptr<ReturnedMemory>& memory,
                                                std::shared_ptr<DeviceStorage> mine) {
  std::lock_guard lock(mutex_);
  if (!record.resident_) return mine;
  Resident& resident = *record.resident_;
  if (resident.memory == memory) {
    resident.storage = mine;
    resident.memory = nullptr;  // the storage holds it
    resident.identity = mine->identity();
    host_.note_handed_out(resident);
    by_storage_.insert(resident);  // a double backward saves what it unpacks
    return mine;
  }
  return resident.storage && resident.storage->data() == memory->data() ? resident.storage : mine;
}

void StoreCore::note_burst(const Record& record, std::string node) {
  std::lock_guard lock(mutex_);
  DeviceTier& tier = *record.tier_;
  const Bytes saved = record.pass_->on(tier.index).saved;
  tier.burst = {std::move(node), tier.held() + tier.handed_over(), saved};
}

void StoreCore::begin_return_locked(Record& record, const Caller& caller, Urgency urgency, Work& work) {
  auto alive = record.weak_from_this().lock();
  if (!alive) return;
  auto resident = std::allocate_shared<Resident>(BlockAllocator<Resident>(residents_));
  DeviceTier& tier = *record.tier_;
  resident->tier = &tier;
  const StreamId stream = urgency == Urgency::kDemand ? caller.stream : caller.stream_of(record);
  resident->stream = stream;
  resident->returned = true;
  // A device's allocator gives aligned memory, so what came from an odd address brings a little more with it.
  const Bytes before(tier.link ? static_cast<int64_t>(record.layout_.remainder) : 0);
  resident->origin = record.begin_ - before;
  resident->bytes = record.bytes() + before;
  resident->records.push_back(&record);
  tier.add(*resident, DeviceTier::Place::kReturning);
  record.resident_ = std::move(resident);
  record.become(RecordState::kReturning);
  record.demanded_ = urgency == Urgency::kDemand;
  if (!tier.link) {
    work.orders().reads.push_back({std::move(alive), urgency});
  } else if (!record.lower_.memory) {
    if (std::exchange(record.lower_.lifting, true)) return;  // by close(), which demands it too
    ++lifting_;
    work.orders().lifts.push_back({std::move(alive), urgency});
  } else {
    record.lower_.copying_in = true;
    work.orders().copies_in.push_back({std::move(alive), stream, caller.stream});
  }
}

/// By plan: in the order in which the plan's pass asked, with room left for what is to be redone in between, so that what
/// is fetched ahead never takes the memory that a redo before it waits for. What is below though the plan kept it, and
/// all where there is no plan: the last packed first.
void StoreCore::prefetch_locked(Pass& pass, DeviceTier& tier, const Caller& caller, Work& work) {
  if (!pass.in_backward_ || below_ == 0) return;
  Pass::OnDevice& on = pass.on(tier.index);
  const auto room_for = [&](const Record& record) { return tier.held() + on.reserved + record.bytes() <= tier.budget; };
  // Whether there was room for it, if it wants any.
  const auto fetch = [&](Record& record) {
    if (record.tier_ != &tier || record.state_ != RecordState::kLower) return true;
    const bool no_room = tier.link ? (tier.host_full || tier.lifts_full) && !record.lower_.memory : staging_full_;
    if (no_room || closed_ || !room_for(record)) return false;
    begin_return_locked(record, caller, Urgency::kPrefetch, work);
    return true;
  };
  const auto fetch_with_inputs = [&](Record& record) {
    if (!fetch(record)) return false;
    if (record.state_ != RecordState::kRedone) return true;
    // Wanted earlier than they themselves are asked for.
    return std::ranges::all_of(record.recipe_->inputs(), [&](const auto& input) { return fetch(*input); });
  };
  if (pass.course_ && tier.index < pass.course_->plans.size()) {
    const std::vector<uint32_t>& order = pass.course_->plans[tier.index].return_order;
    for (; on.turn < order.size(); ++on.turn) {
      Record* record = order[on.turn] < pass.made_.size() ? pass.made_[order[on.turn]] : nullptr;
      if (record == nullptr) continue;
      if (!fetch_with_inputs(*record)) return;
      if (record->state_ != RecordState::kRedone || record->reserved_) continue;
      if (!room_for(*record)) return;
      record->reserved_ = true;
      on.reserved += record->bytes();
    }
  }
  for (; on.next > 0; --on.next) {
    Record* record = pass.sequence_[on.next - 1];
    if (record != nullptr && !fetch_with_inputs(*record)) return;
  }
}

/// It was to be fetched ahead, and is not now.
void StoreCore::put_off_locked(Record& record) noexcept {
  Pass& pass = *record.pass_;
  Pass::OnDevice& on = pass.on(record.tier_->index);
  on.next = std::max<size_t>(on.next, record.slot_ + size_t{1});
  if (!pass.course_ || record.tier_->index >= pass.course_->plans.size()) return;
  const std::vector<uint32_t>& order = pass.course_->plans[record.tier_->index].return_order;
  for (size_t turn = on.turn; turn > 0; --turn)
    if (order[turn - 1] == record.index_) on.turn = turn - 1;
}

/// Its redo has run, or is not wanted any more.
void StoreCore::unreserve_locked(Record& record) noexcept {
  if (std::exchange(record.reserved_, false)) record.pass_->on(record.tier_->index).reserved -= record.bytes();
}

void StoreCore::read(const std::shared_ptr<Record>& record, Urgency urgency) {
  const RecordLayout& layout = record->layout_;  // fixed since it left
  const auto from =
      urgency == Urgency::kDemand ? ReturnedMemory::From::kPoolOrSystem : ReturnedMemory::From::kReadyPool;
  auto memory =
      ReturnedMemory::make(shared_from_this(), pool_.get(), record->bytes(), layout.modulus, layout.remainder, from);
  if (!memory) {
    Work work(*this);
    std::lock_guard lock(mutex_);
    if (urgency == Urgency::kDemand) {
      record->lost_ = Failure{FailureCode::kOverCapacity, ENOMEM,
                              "the system has no memory for a saved tensor of " + to_string(record->bytes()) +
                                  " that comes back: lower device_budget"};
    } else {  // whoever waits for it by now finds it below, and demands it
      staging_full_ = true;
      put_off_locked(*record);
    }
    record->become(RecordState::kLower);
    detach_locked(*record, work);
    changed_.notify_all();
    return;
  }
  std::byte* first = memory->data();
  std::memcpy(first, record->edges_.data(), layout.head);
  std::memcpy(first + layout.head + layout.middle, record->edges_.data() + layout.head, layout.tail);
  {
    std::lock_guard lock(mutex_);
    record->resident_->memory = memory;
    record->lost_.reset();
    if (urgency == Urgency::kDemand) staging_full_ = false;  // the pool may have grown
    if (layout.middle == 0) {
      record->become(RecordState::kClean);
      place_locked(*record->resident_);
      changed_.notify_all();
      return;
    }
    under_way_.emplace(record->id_, record.get());
    if (record->demanded_) urgency = Urgency::kDemand;
  }
  const auto priority = urgency == Urgency::kDemand ? SpillTier::Priority::kDemand : SpillTier::Priority::kPrefetch;
  const auto id =
      spill_->read(record->item_, {{first + layout.head, layout.middle}}, priority,
                   [weak_core = weak_from_this(), record_id = record->id_, memory](const Status& status) mutable {
                     memory.reset();  // whoever is woken now must not find it held here
                     if (auto core = weak_core.lock()) core->read_done(record_id, status);
                   });
  bool raise = false;
  {
    std::lock_guard lock(mutex_);
    if (record->state_ != RecordState::kReturning) return;
    record->transfer_ = id;
    raise = record->demanded_ && urgency == Urgency::kPrefetch;
  }
  if (raise) spill_->raise_priority(id);
}

void StoreCore::read_done(uint64_t record_id, const Status& status) {
  {
    Work work(*this);
    std::unique_lock lock(mutex_);
    if (Record* record = arrived_locked(lock, record_id)) {
      if (status.ok()) {
        record->become(RecordState::kClean);
        place_locked(*record->resident_);
      } else {
        record->lost_ = status.failure();
        record->become(RecordState::kLost);
        detach_locked(*record, work);
      }
    }
  }
  changed_.notify_all();
}

void StoreCore::check_fingerprint(const Record& record, const std::byte* data) const {
  if (XXH3_64bits(data, static_cast<size_t>(record.bytes().count())) == *record.fingerprint_) return;
  throw CorruptTensor("a saved tensor of " + to_string(record.bytes()) +
                      " came back with other bytes than it left with (verify)");
}

}  // namespace ebbtide
