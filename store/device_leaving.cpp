// How an accelerator's saved tensors leave: a copy into host memory, and from there to disk. A caller waits for copies
// under way only where host memory is full and the disk will take some of it over (settle).
#include <ebbtide/store/store_core.h>
#include <ebbtide/store/work.h>
#include <ebbtide/transfer/nvtx_range.h>

#include <algorithm>
#include <utility>

namespace ebbtide {

/// The budget needs memory whose copies are queued behind the lane's cap: enqueues the oldest. Returns whether that
/// changed anything. REQUIRES: `lock` is held; let go of and taken again.
bool StoreCore::hasten(std::unique_lock<std::mutex>& lock, DeviceTier& tier) {
  Few<CopyJobPtr> jobs;
  const auto& leaving = tier.list(DeviceTier::Place::kLeaving);
  Bytes missing = tier.held() - tier.budget;
  for (const Resident* resident = leaving.front(); resident != nullptr && missing > Bytes(0);
       resident = leaving.next(*resident)) {
    missing -= resident->bytes;
    for (const Record* record : resident->records)
      if (record->state_ == RecordState::kLeaving && record->lower_.out) jobs.push_back(record->lower_.out);
  }
  lock.unlock();
  bool changed = false;
  for (const CopyJobPtr& job : jobs) {
    const Result<EventPtr> enqueued = tier.link->out.demand(job);
    changed |= enqueued.ok() || job->finished();
  }
  lock.lock();
  return changed;
}

/// Some host memory will hold what the disk may take, as soon as its copy has passed.
bool StoreCore::copies_run_locked() noexcept {
  if (!may_spill_locked()) return false;
  for (const LowerCopy* copy = host_copies_.front(); copy != nullptr; copy = host_copies_.next(*copy))
    if (!copy->passed_out()) return true;
  return false;
}

/// Of host memory, what no record holds any more: copies and the disk do, of records that died or are on the device
/// again, and give it back as they end.
Bytes StoreCore::host_coming_free_locked() const {
  return host_pool_->stats().live_bytes - host_pool_bytes_;
}

void StoreCore::note_enqueued_locked(DeviceTier& tier) {
  const auto& leaving = tier.list(DeviceTier::Place::kLeaving);
  Resident* next = nullptr;
  for (Resident* resident = leaving.front(); resident != nullptr; resident = next) {
    next = leaving.next(*resident);
    for (Record* record : resident->records) {
      if (record->state_ != RecordState::kLeaving || !record->lower_.out) continue;
      const CopyState state = record->lower_.out->state();
      if (state == CopyState::kEnqueued || state == CopyState::kPassed) record->become(RecordState::kClean);
    }
    place_locked(*resident);
  }
}

void StoreCore::copy_out(const Few<CopyOut>& orders) {
  for (size_t i = 0; i < orders.size(); ++i) {
    const std::shared_ptr<Record>& record = orders[i].record;
    DeviceLink& link = *record->tier_->link;
    std::byte* first = nullptr;
    Bytes whole, bytes;
    Rows rows;
    EventPtr after;
    StreamId stream{};
    bool promised = false;
    uint64_t rooms = 0;
    {
      std::lock_guard lock(mutex_);
      if (record->state_ != RecordState::kLeaving) continue;
      const Resident& resident = *record->resident_;
      first = resident.data() + (record->begin_ - resident.origin).count();
      whole = record->bytes();
      bytes = record->packed_bytes();
      rows = record->rows_;
      after = record->packed_;
      stream = resident.stream;
      promised = host_is_promised_locked(*record->tier_, bytes);
      rooms = host_rooms_;
    }
    const NvtxRange range(NvtxRange::Of::kLeave, bytes);
    std::shared_ptr<HostCopy> memory;
    const NumaNode node = record->tier_->node;
    if (!promised) memory = HostCopy::make(host_copy_objects_, *host_pool_, bytes, node, HostCopy::From::kPool);
    note_pageable();
    if (!memory) {
      const PoolStats pool = host_pool_->stats();
      std::lock_guard lock(mutex_);
      for (size_t refused = orders.size(); refused-- > i;) {  // backwards: the oldest ends up in front again
        Record& stays = *orders[refused].record;
        if (stays.state_ != RecordState::kLeaving) continue;
        stays.become(RecordState::kResident);
        place_locked(*stays.resident_, /*to_front=*/true);
      }
      if (bytes > pool.most_slab_bytes)
        record->stays_ = true;        // and must not bar the way of those behind it
      else if (rooms == host_rooms_)  // else it may have been refused what has come back since
        note_host_full_locked(*record->tier_, bytes,
                              /*short_of_memory=*/!promised && pool.slab_bytes < pool.most_slab_bytes);
      break;  // and kick: a caller may wait for the copies before this one
    }
    if (!after) {
      Result<EventPtr> now = link.device->record(stream);
      if (!now.ok()) {
        std::lock_guard lock(mutex_);
        copy_out_failed_locked(*record, now.failure());
        continue;
      }
      after = std::move(now).value();
    }
    auto passage =
        std::allocate_shared<Passage>(passages_, Passage{weak_from_this(), record.get(), memory, orders[i].storage});
    {
      std::lock_guard lock(mutex_);
      record->layout_.modulus = kDeviceAlignment;
      record->layout_.remainder = reinterpret_cast<uintptr_t>(first) % kDeviceAlignment;
      record->lower_.leaving = passage;
      record->lower_.out = nullptr;
      hold_host_locked(*record, memory);
    }
    CopyRequest request{.chunks = chunks_between(first, whole, rows, memory->pieces(), Direction::kOut),
                        .after = std::move(after),
                        .keepalive = passage};
    memory = nullptr;
    request.done = [raw = passage.get()](const Status& status) {
      if (auto core = raw->core.lock()) core->copy_out_done(*raw, status);
    };
    CopyJobPtr job = link.out.submit(std::move(request));
    std::lock_guard lock(mutex_);
    if (passage->record != nullptr) record->lower_.out = std::move(job);
  }
  if (link_thread_) link_thread_->kick();
}

void StoreCore::copy_out_done(Passage& passage, const Status& status) {
  std::optional<uint64_t> fingerprint;
  if (status.ok() && options_.verify.value_or(false)) fingerprint = passage.memory->fingerprint();
  {
    Work work(*this);
    std::lock_guard lock(mutex_);
    ++copies_out_done_;
    Record* record = std::exchange(passage.record, nullptr);
    settle_passage_locked(passage, record, work);
    passage.memory = nullptr;
    if (record == nullptr) {
      note_host_room_locked();
    } else {
      record->lower_.leaving = nullptr;
      if (trace_) trace_end_locked(Trace::Flow::kCopyOut, *record);
      if (status.ok()) {
        record->tier_->copy_errors = 0;
        record->fingerprint_ = fingerprint;
        if (record->state_ == RecordState::kLeaving) {
          record->become(RecordState::kClean);
          place_locked(*record->resident_);
        }
      } else {
        (void)let_go_host_locked(*record);
        if (record->state_ == RecordState::kLower) record->become(RecordState::kReturning);
        if (record->state_ == RecordState::kReturning) {  // it was the only copy: the device is lost
          record->lost_ = failed_device(*record, status.failure());
          record->become(RecordState::kLost);
          if (record->resident_ && record->resident_->storage) buried_.push_back(record->resident_->storage);
          detach_locked(*record, work);
        } else if (record->state_ != RecordState::kLost) {  // else its copy in failed first
          copy_out_failed_locked(*record, status.failure());
        }
      }
    }
  }
  changed_.notify_all();
}

void StoreCore::copy_out_failed_locked(Record& record, const Failure& failure) {
  record.become(RecordState::kResident);
  place_locked(*record.resident_);
  ++record.tier_->copy_errors;
  last_write_error_ = failure.message;
  warn_once_locked("copy out", "a saved tensor could not be copied off its device and stays there: " + failure.message);
}

/// The record's device memory is about to be let go of: out of the passages too, so that it really goes.
void StoreCore::part_locked(Record& record, const Resident& resident, Work& work) {
  LowerCopy& lower = record.lower_;
  if (lower.leaving) {
    DeviceLink& link = *record.tier_->link;
    auto storage = std::exchange(lower.leaving->storage, nullptr);
    if (lower.out && !lower.out->finished()) {
      Few<Part>& parted = work.orders().parted;
      parted.push_back({link, record.pass_->times_, resident.stream, lower.out, lower.leaving, std::move(storage)});
    } else {
      work.exhumed.push_back(std::move(storage));
    }
  }
  if (lower.returning) {  // unpacked on resident.stream, which came after the copy then
    work.exhumed.push_back(std::exchange(lower.returning->storage, nullptr));
    lower.returning->record = nullptr;
    lower.returning = nullptr;
    lower.in = nullptr;
    lower.copying_in = false;
  }
}

/// Whoever gets the memory next works on the same stream: with this wait, after the copy.
void StoreCore::part(const Part& order) {
  {
    const MarkedWait marked(order.times.get(), *order.link.device, order.stream);
    if (order.link.device->wait(order.stream, order.job->event()).ok()) return;
  }
  std::lock_guard lock(mutex_);
  if (!order.job->finished()) order.passage->storage = order.storage;  // parked until the copy has passed
}

/// Keeps a quarter of the host tier free, so that what leaves finds room at once.
void StoreCore::sink_ahead() {
  Work work(*this);
  {
    std::lock_guard lock(mutex_);
    Bytes wanted = host_bytes_ - (host_budget_ - host_budget_ / 4);
    for (const DeviceTier& tier : tiers_)
      if (tier.host_full || tier.lifts_full) wanted = std::max(wanted, tier.host_wanted);
    sink_locked(wanted, work);
  }
  work.run();
}

/// Lets host copies go to disk until as much as `wanted` is on its way: the oldest, first of the devices that have more
/// than their share.
void StoreCore::sink_locked(Bytes wanted, Work& work) {
  const bool may_spill = may_spill_locked();
  if (!may_spill && (!full_at_ || closed_ || write_errors_ > 0)) return;  // a disk that may not be read any more
  for (const bool over_share : {true, false}) {
    if (!may_spill && !over_share) return;  // what is on disk already has gone
    LowerCopy* next = nullptr;
    for (LowerCopy* copy = host_copies_.front(); copy != nullptr && sinking_ < wanted; copy = next) {
      next = host_copies_.next(*copy);
      if (copy->sinking || !copy->passed_out()) continue;
      Record& record = *copy->record;
      if (record.item_ && record.state_ == RecordState::kLower) {  // came up to be fetched ahead, and was not
        wanted -= copy->memory->bytes();
        (void)let_go_host_locked(record);
        continue;
      }
      if (!may_spill || record.item_) continue;
      if (record.state_ != RecordState::kClean && record.state_ != RecordState::kLower) continue;
      if (over_share && record.tier_->host_bytes <= host_share_locked(*record.tier_)) continue;
      copy->sinking = true;
      sinking_ += copy->memory->bytes();
      under_way_.emplace(record.id_, &record);
      if (trace_) trace_begin_locked(Trace::Flow::kWrite, record);
      work.orders().sinks.push_back({record.id_, copy->memory});
    }
  }
}

void StoreCore::sink(Sink order) {
  std::vector<IoPiece> pieces(order.memory->pieces().begin(), order.memory->pieces().end());
  const Bytes held = spill_->bytes();
  auto submitted = spill_->write(order.record_id, std::move(pieces),
                                 [weak_core = weak_from_this(), id = order.record_id,
                                  memory = std::move(order.memory)](Result<SpilledItem> item) mutable {
                                   if (auto core = weak_core.lock())
                                     core->sink_done(id, std::move(item), std::move(memory));
                                 });
  if (!submitted.ok()) return sink_done(order.record_id, submitted.failure(), nullptr, held);
  std::lock_guard lock(mutex_);
  const auto under_way = under_way_.find(order.record_id);
  if (under_way != under_way_.end()) under_way->second->transfer_ = submitted.value();  // else done, or dead, already
}

void StoreCore::sink_done(uint64_t record_id, Result<SpilledItem> item, std::shared_ptr<HostCopy> memory,
                          Bytes held_before) {
  {
    std::unique_lock lock(mutex_);
    if (Record* record = arrived_locked(lock, record_id, &item)) {
      record->lower_.sinking = false;
      if (trace_) trace_end_locked(Trace::Flow::kWrite, *record);
      sinking_ -= record->lower_.memory->bytes();
      if (item.ok()) {
        write_errors_ = 0;
        record->item_ = std::move(item).value();
        record->spilled_ = true;
        const bool wanted_again = record->state_ == RecordState::kReturning && !record->lower_.returning;
        if (!wanted_again) (void)let_go_host_locked(*record);
      } else if (item.failure().code != FailureCode::kCancelled) {
        note_write_error_locked(item.failure(), held_before);
      }
    }
    memory = nullptr;
    note_host_room_locked();
  }
  changed_.notify_all();
}

void StoreCore::hold_host_locked(Record& record, std::shared_ptr<HostCopy> memory) {
  record.lower_.memory = std::move(memory);
  host_bytes_ += record.lower_.memory->bytes();
  host_pool_bytes_ += record.lower_.memory->bytes_of_pool();
  record.tier_->host_bytes += record.lower_.memory->bytes();
  host_copies_.push_back(record.lower_);
}

/// What is returned may be dropped under the lock: it is the pool's, not the framework's.
std::shared_ptr<HostCopy> StoreCore::let_go_host_locked(Record& record) noexcept {
  if (!record.lower_.memory) return nullptr;
  host_bytes_ -= record.lower_.memory->bytes();
  host_pool_bytes_ -= record.lower_.memory->bytes_of_pool();
  record.tier_->host_bytes -= record.lower_.memory->bytes();
  host_copies_.remove(record.lower_);
  note_host_room_locked();
  return std::exchange(record.lower_.memory, nullptr);
}

/// A job has ended: its reference to device memory goes; if it is the last and may run the framework's code, on a
/// caller's thread.
void StoreCore::settle_passage_locked(Passage& passage, Record* record, Work& work) {
  if (!passage.storage) return;
  const bool shared = record != nullptr && record->resident_ && record->resident_->storage == passage.storage;
  if (!shared) (passage.storage->plain() ? work.exhumed : buried_).push_back(std::move(passage.storage));
  passage.storage = nullptr;
}

/// The record dies. Copies of it that are enqueued run on; what they touch is parked in their passages until then,
/// since no stream of the user's may be touched here.
void StoreCore::forget_copies_locked(Record& record, Work& work) {
  LowerCopy& lower = record.lower_;
  DeviceLink& link = *record.tier_->link;
  if (lower.leaving) {
    lower.leaving->record = nullptr;
    if (lower.out) work.orders().cancelled_copies.push_back({link.out, lower.out});
  }
  if (lower.returning) {
    lower.returning->record = nullptr;
    if (record.state_ == RecordState::kReturning) {
      if (lower.in) work.orders().cancelled_copies.push_back({link.in, lower.in});
    } else {
      work.exhumed.push_back(std::exchange(lower.returning->storage, nullptr));  // as in part_locked
    }
  }
  if (lower.sinking) sinking_ -= lower.memory->bytes();
  if (lower.lifting) --lifting_;
  auto memory = let_go_host_locked(record);
  if (in_child_)
    new auto(std::move(memory));  // the pool's lock may be held for ever
  else if (memory && memory->bytes_of_pool() == Bytes(0))
    work.of_system = std::move(memory);
}

}  // namespace ebbtide
