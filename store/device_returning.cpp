// How an accelerator's saved tensors come back: from disk into host memory by a store's thread, and from there by a
// copy that the compute stream, and no caller, waits for.
#include <ebbtide/store/store_core.h>
#include <ebbtide/store/work.h>
#include <ebbtide/transfer/nvtx_range.h>

#include <algorithm>
#include <cerrno>
#include <thread>
#include <utility>

namespace ebbtide {

StoreCore::Unpacked StoreCore::unpack_from_device(Record& record, StreamId stream) {
  DeviceTier& tier = *record.tier_;
  const NvtxRange range(NvtxRange::Of::kUnpack, record.footprint_);
  Bytes held_at_refusal = Bytes(-1);  // when the device last had no room for it
  double waited_s = 0;
  Trace::Time began{};
  for (;;) {
    pump();
    Work work(*this);
    std::unique_lock lock(mutex_);
    if (trace_ && began == Trace::Time()) began = std::chrono::steady_clock::now();
    if (!buried_.empty()) std::swap(work.exhumed, buried_);
    switch (record.state_) {
      case RecordState::kResident:
      case RecordState::kLeaving:
      case RecordState::kClean: {
        Resident& resident = *record.resident_;
        // What came back is ordered for the stream that it was fetched for; another has not waited for the copy.
        if (resident.returned && resident.stream != stream && record.state_ == RecordState::kClean) {
          drop_record_locked(record, work);
          break;
        }
        EventPtr redone;
        if (record.redone_ && resident.returned && resident.stream != stream) redone = record.packed_;
        record.unpacked_ = true;
        record.demanded_ = false;
        if (resident.identity == nullptr) {
          resident.identity = resident.storage->identity();
          by_storage_.insert(resident);  // a double backward saves what it unpacks
          tier.note_handed_out(resident);
        }
        Unpacked unpacked{resident.storage, nullptr, resident.origin, resident.stream != stream};
        unpacked.waited_s = waited_s;
        prefetch_locked(*record.pass_, tier, {stream, record}, work);
        begin_copies_in_locked(tier, {stream, record}, work);
        unpacked.burst = tier.note_peak() && tier.handed_over() > tier.budget;
        if (trace_) trace_call_locked("unpack", began, traced(record));
        lock.unlock();
        work.run();
        if (redone) {
          const Status waiting = tier.device->wait(stream, redone);
          if (!waiting.ok()) {
            if (waiting.failure().code != FailureCode::kOverCapacity) throw_lost(waiting.failure());
            std::this_thread::yield();  // the device has no event to give: ask again
            continue;
          }
        }
        return unpacked;
      }
      case RecordState::kLower:
        look_again_locked(tier, 8, Look::kForDroppable);
        if (record.lost_) {
          const Failure why = *std::exchange(record.lost_, std::nullopt);
          const bool first = held_at_refusal < Bytes(0);
          if (why.code != FailureCode::kOverCapacity || (!first && tier.held() >= held_at_refusal)) {
            lock.unlock();
            throw_lost(why);
          }
          // Once more, with all that can be fetched again out of the way; then with less and less of the others.
          held_at_refusal = tier.held();
          drop_clean_locked(tier, Bytes(0), work);
          if (!first || work.empty()) {
            ease_locked(tier, record.bytes());
            lock.unlock();
            work.run();
            settle(record.pass_.get(), tier, Until::kAsFarAsPossible);
            continue;
          }
        } else {
          drop_clean_locked(tier, tier.budget, work);
        }
        begin_return_locked(record, stream, Urgency::kDemand, work);
        break;
      case RecordState::kReturning:
        record.demanded_ = true;
        if (record.lower_.in) {
          if (record.resident_->stream != stream) {
            forsake_copy_in_locked(record, work);
            break;
          }
          if (!take(lock, record, stream)) std::this_thread::yield();  // the device has no event to give: ask again
          continue;
        }
        begin_copies_in_locked(tier, {stream, record}, work);
        if (record.transfer_) work.orders().demanded.push_back(*record.transfer_);
        lock.unlock();
        work.run();
        lock.lock();
        // For the disk, or for another thread that is just submitting the copy; not for the copy.
        waited_s += wait(lock, record.pass_.get(), StallCause::kReturn, &record, [&] {
          const LowerCopy& lower = record.lower_;
          return record.state_ != RecordState::kReturning || lower.in || (lower.memory && !lower.copying_in);
        });
        continue;
      case RecordState::kRedone: {
        Unpacked unpacked{.recipe = recipe_for_unpack_locked(record, stream, work)};
        begin_copies_in_locked(tier, {stream, record}, work);
        lock.unlock();
        work.run();
        mark_redo(record, stream, Redo::kBegins);
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

/// Makes `stream` wait for the record's copy in. False where the device could not do it now. REQUIRES: `lock` is held;
/// it is let go of.
bool StoreCore::take(std::unique_lock<std::mutex>& lock, Record& record, StreamId stream) {
  DeviceLink& link = *record.tier_->link;
  const CopyJobPtr job = record.lower_.in;
  lock.unlock();
  const Result<EventPtr> here = link.in.demand(job);
  if (!here.ok()) return false;  // lost or superseded: the record's state will say
  Status waiting = success();
  {
    const MarkedWait marked(record.pass_->marked_.load(std::memory_order_acquire), *link.device, stream);
    waiting = link.device->wait(stream, here.value());
  }
  if (!waiting.ok() && waiting.failure().code == FailureCode::kOverCapacity) return false;
  lock.lock();
  if (!waiting.ok()) {
    record.demanded_ = false;  // nobody comes to take it now: it may be let go of again
    lock.unlock();
    throw_lost(failed_device(record, waiting.failure()));
  }
  if (record.state_ == RecordState::kReturning && record.lower_.in == job) {
    record.become(RecordState::kClean);
    place_locked(*record.resident_);
  }
  lock.unlock();
  return true;
}

/// What was fetched ahead for one stream is wanted on another. The memory stays parked until its copy has passed.
void StoreCore::forsake_copy_in_locked(Record& record, Work& work) {
  LowerCopy& lower = record.lower_;
  lower.returning->record = nullptr;
  work.orders().cancelled_copies.push_back({record.tier_->link->in, std::exchange(lower.in, nullptr)});
  lower.returning = nullptr;
  back_to_lower_locked(record, work);
}

void StoreCore::back_to_lower_locked(Record& record, Work& work) {
  record.become(RecordState::kLower);
  detach_locked(record, work);
}

/// The budget is wanted for something else: what the disk brings up in advance counts in it, though none of the
/// device's memory is taken yet, and a backward that stopped early never comes to take it.
void StoreCore::put_off_lifts_locked(DeviceTier& tier, Work& work) {
  if (!tier.link) return;
  const auto& returning = tier.list(DeviceTier::Place::kReturning);
  Resident* next = nullptr;
  for (Resident* resident = returning.front(); resident != nullptr && tier.held() > tier.budget; resident = next) {
    next = returning.next(*resident);
    Record& record = *resident->records.front();
    if (record.demanded_ || record.lower_.copying_in || record.lower_.returning) continue;
    put_off_locked(record);
    back_to_lower_locked(record, work);
  }
}

/// For all that has come up from disk since: here is a caller, and so a stream to allocate on.
void StoreCore::begin_copies_in_locked(DeviceTier& tier, const Caller& caller, Work& work) {
  const auto& returning = tier.list(DeviceTier::Place::kReturning);
  for (Resident* resident = returning.front(); resident != nullptr; resident = returning.next(*resident)) {
    Record& record = *resident->records.front();
    if (!record.lower_.memory || record.lower_.copying_in || record.lower_.returning) continue;
    auto alive = record.weak_from_this().lock();
    if (!alive) continue;
    record.lower_.copying_in = true;
    work.orders().copies_in.push_back({std::move(alive), caller.stream_of(record), caller.stream});
  }
}

void StoreCore::copy_in(const CopyIn& order) {
  Record& record = *order.record;
  DeviceLink& link = *record.tier_->link;
  std::shared_ptr<HostCopy> memory;
  CopyJobPtr out;
  Bytes whole, before;
  Rows rows;
  std::optional<uint64_t> fingerprint;  // none yet for what has not left wholly
  {
    std::lock_guard lock(mutex_);
    record.lower_.copying_in = record.state_ == RecordState::kReturning;
    if (!record.lower_.copying_in) return;  // lost meanwhile
    memory = record.lower_.memory;
    if (record.lower_.leaving) out = record.lower_.out;
    fingerprint = record.fingerprint_;
    whole = record.resident_->bytes;
    before = record.begin_ - record.resident_->origin;
    rows = record.rows_;
  }
  StreamId stream = order.stream;
  if (stream != order.callers) {  // what its user does is not known here
    const Result<bool> capturing = link.device->capturing(stream);
    if (!capturing.ok() || capturing.value()) stream = order.callers;
  }
  const NvtxRange range(NvtxRange::Of::kReturn, memory->bytes());
  if (fingerprint && memory->fingerprint() != *fingerprint)
    return copy_in_refused(record, {FailureCode::kCorrupt, 0,
                                    "a saved tensor of " + to_string(record.bytes()) +
                                        " lies in host memory with other bytes than it left with (verify)"});
  Result<std::shared_ptr<DeviceStorage>> allocated = link.allocator->allocate(whole, stream);
  if (!allocated.ok()) {
    Failure why = allocated.failure();
    if (stream != order.callers && why.code == FailureCode::kInvalid) why.code = FailureCode::kCancelled;
    return copy_in_refused(record, why);
  }
  const std::shared_ptr<DeviceStorage> storage = std::move(allocated).value();
  Result<EventPtr> after = link.device->record(stream);  // what its memory was used for before has run by then
  if (!after.ok()) return copy_in_refused(record, after.failure());
  if (out && !out->finished()) {  // the host memory is still being filled
    if (Status filled = link.device->wait(link.in.stream(), out->event()); !filled.ok())
      return copy_in_refused(record, filled.failure());
  }
  auto passage = std::allocate_shared<Passage>(passages_, Passage{weak_from_this(), &record, memory, storage});
  {
    std::lock_guard lock(mutex_);
    record.lower_.copying_in = record.state_ == RecordState::kReturning;
    if (!record.lower_.copying_in) return;
    record.resident_->storage = storage;
    record.resident_->stream = stream;
    record.lower_.returning = passage;
    if (trace_) trace_begin_locked(Trace::Flow::kCopyIn, record);
    // On disk too: the memory goes when the copy has passed. A disk that is closed is read no more.
    if (record.item_ && !closed_) (void)let_go_host_locked(record);
  }
  // To where they were: gaps are left as they come, for no view that this record serves reads them.
  CopyRequest request{.chunks = chunks_between(storage->data() + before.count(), whole - before, rows, memory->pieces(),
                                               Direction::kIn),
                      .after = std::move(after).value(),
                      .keepalive = passage};
  memory = nullptr;
  request.done = [raw = passage.get()](const Status& status) {
    if (auto core = raw->core.lock()) core->copy_in_done(*raw, status);
  };
  CopyJobPtr job = link.in.submit(std::move(request));
  {
    std::lock_guard lock(mutex_);
    if (passage->record != nullptr) {  // else it is over, and another may have begun
      record.lower_.copying_in = false;
      record.lower_.in = std::move(job);
    }
  }
  changed_.notify_all();
  if (link_thread_) link_thread_->kick();
}

/// Why the record does not come back, for the user: which device, and what it says.
Failure StoreCore::failed_device(const Record& record, const Failure& why) {
  return {FailureCode::kDeviceLost, why.system_errno,
          "a saved tensor of " + to_string(record.bytes()) + " cannot come back, for the device " +
              record.tier_->device->name() + " failed: " + why.message};
}

void StoreCore::copy_in_refused(Record& record, const Failure& failure) {
  {
    Work work(*this);
    std::lock_guard lock(mutex_);
    record.lower_.copying_in = false;
    if (record.state_ == RecordState::kReturning) return_refused_locked(record, failure, work);
  }
  changed_.notify_all();
}

/// The device had no room or no event now: whoever waits tries again or throws, a prefetch is put off. kCancelled: memory
/// for the stream is given to who works there alone, who may be waiting for this.
void StoreCore::return_refused_locked(Record& record, const Failure& failure, Work& work) {
  if (failure.code == FailureCode::kCorrupt || (record.demanded_ && failure.code == FailureCode::kOverCapacity)) {
    record.lost_ = failure;
  } else if (record.demanded_ && failure.code != FailureCode::kCancelled) {
    record.lost_ = failed_device(record, failure);
  } else {
    put_off_locked(record);
  }
  back_to_lower_locked(record, work);
}

void StoreCore::copy_in_done(Passage& passage, const Status& status) {
  std::shared_ptr<HostCopy> of_system;  // ends without the lock: the driver is called
  {
    Work work(*this);
    std::lock_guard lock(mutex_);
    Record* record = std::exchange(passage.record, nullptr);
    settle_passage_locked(passage, record, work);
    if (passage.memory && passage.memory->bytes_of_pool() == Bytes(0)) std::swap(of_system, passage.memory);
    passage.memory = nullptr;
    note_host_room_locked();
    if (record != nullptr) {
      record->lower_.returning = nullptr;
      record->lower_.in = nullptr;
      record->lower_.copying_in = false;
      if (trace_) trace_end_locked(Trace::Flow::kCopyIn, *record);
      if (record->state_ == RecordState::kReturning && status.ok()) {
        record->become(RecordState::kClean);
        place_locked(*record->resident_);
      } else if (record->state_ == RecordState::kReturning) {
        buried_.push_back(record->resident_->storage);
        if (!means_lost(status.failure().code)) {  // nor is the host copy
          return_refused_locked(*record, status.failure(), work);
        } else {
          record->lost_ = failed_device(*record, status.failure());
          record->become(RecordState::kLost);
          detach_locked(*record, work);
        }
      }
    }
  }
  changed_.notify_all();
}

void StoreCore::lift(const std::shared_ptr<Record>& record, Urgency urgency) {
  const auto from = urgency == Urgency::kDemand ? HostCopy::From::kPoolOrSystem : HostCopy::From::kReadyPool;
  bool promised = false;
  uint64_t rooms = 0;
  if (urgency == Urgency::kPrefetch) {
    std::lock_guard lock(mutex_);
    promised = host_is_promised_locked(*record->tier_, record->packed_bytes());
    rooms = host_rooms_;
  }
  std::shared_ptr<HostCopy> memory;
  const NumaNode node = record->tier_->node;
  if (!promised)
    memory = HostCopy::make(host_copy_objects_, *host_pool_, record->packed_bytes(), node, from, host_registrar_);
  if (!memory) {
    {
      Work work(*this);
      std::lock_guard lock(mutex_);
      record->lower_.lifting = false;
      --lifting_;
      if (urgency == Urgency::kDemand) {
        record->lost_ = Failure{FailureCode::kOverCapacity, ENOMEM,
                                "the system has no memory for a saved tensor of " + to_string(record->bytes()) +
                                    " that comes back: lower host_budget"};
      } else {
        if (rooms == host_rooms_) record->tier_->lifts_full = true;
        record->tier_->host_wanted = record->packed_bytes();
        put_off_locked(*record);
      }
      if (record->state_ == RecordState::kReturning) back_to_lower_locked(*record, work);
    }
    changed_.notify_all();
    return;
  }
  {
    std::lock_guard lock(mutex_);
    under_way_.emplace(record->id_, record.get());
    if (record->demanded_) urgency = Urgency::kDemand;
    if (trace_) trace_begin_locked(Trace::Flow::kRead, *record);
  }
  const auto priority = urgency == Urgency::kDemand ? SpillTier::Priority::kDemand : SpillTier::Priority::kPrefetch;
  const std::vector<IoPiece> pieces(memory->pieces().begin(), memory->pieces().end());
  const auto id = spill_->read(record->item_, pieces, priority,
                               [weak_core = weak_from_this(), record_id = record->id_,
                                memory = std::move(memory)](const Status& status) mutable {
                                 if (auto core = weak_core.lock())
                                   core->lift_done(record_id, status, std::move(memory));
                               });
  bool raise = false;
  {
    std::lock_guard lock(mutex_);
    if (!record->lower_.lifting) return;  // done already
    record->transfer_ = id;
    raise = record->demanded_ && urgency == Urgency::kPrefetch;
  }
  if (raise) spill_->raise_priority(id);
}

void StoreCore::lift_done(uint64_t record_id, const Status& status, std::shared_ptr<HostCopy> memory) {
  {
    Work work(*this);
    std::unique_lock lock(mutex_);
    if (Record* record = arrived_locked(lock, record_id)) {
      record->lower_.lifting = false;
      --lifting_;
      if (trace_) trace_end_locked(Trace::Flow::kRead, *record);
      if (status.ok()) {
        hold_host_locked(*record, std::move(memory));
      } else {
        record->lost_ = status.failure();
        if (record->state_ == RecordState::kReturning) {
          record->become(RecordState::kLost);
          detach_locked(*record, work);
        }
      }
    }
    if (memory && memory->bytes_of_pool() > Bytes(0)) {  // the system's ends without the lock: the driver is called
      memory = nullptr;
      note_host_room_locked();
    }
  }
  changed_.notify_all();
}

/// close(): host memory is home enough, since copies from there need no disk and no caller's stream yet. Also for what is
/// on the device: another stream may yet want it, or its copy fail, and then it comes from below once more.
void StoreCore::lift_for_close_locked(Record& record, Work& work) {
  LowerCopy& lower = record.lower_;
  if (!record.item_ || lower.memory || lower.lifting || record.lost_) return;
  if (lower.returning) return hold_host_locked(record, lower.returning->memory);  // a copy reads it still
  if (auto alive = record.weak_from_this().lock()) {
    lower.lifting = true;
    ++lifting_;
    work.orders().lifts.push_back({std::move(alive), Urgency::kDemand});
  }
}

}  // namespace ebbtide
