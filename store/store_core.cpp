#include <ebbtide/pinned_pool/capacity.h>
#include <ebbtide/store/error.h>
#include <ebbtide/store/report.h>
#include <ebbtide/store/store_core.h>
#include <ebbtide/store/work.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <utility>

namespace ebbtide {
namespace {

/// The spill tier's unit: smaller records are not worth an extent.
constexpr Bytes kLeastMinBytes = KiB(4);
constexpr Bytes kDefaultMinBytes = KiB(64);
/// One huge page. With less staging nothing is prefetched, and what is demanded comes back into memory of the system's.
constexpr Bytes kLeastPool = MiB(2);

/// What comes back lies in staging memory and counts in the device budget, so more than that is never live; a quarter
/// for the pool's rounding. What a fast disk needs in flight is far less than a GiB.
Bytes default_staging(Bytes device_budget) {
  return std::clamp(device_budget + device_budget / 4, MiB(64), GiB(1));
}

}  // namespace

StoreCore::StoreCore(Options options) : options_(std::move(options)) {}

std::shared_ptr<StoreCore> StoreCore::open(const Options& options) {
  std::shared_ptr<StoreCore> core(new StoreCore(resolve(options)));
  const Options& asked = core->options_;
  core->min_bytes_ = std::max(kLeastMinBytes, asked.min_bytes.value_or(kDefaultMinBytes));
  const Bytes available = pinned_pool::Capacity().room().left;
  core->host_.budget = available - available / 16;
  if (asked.device_budget) {
    if (const Bytes* bytes = std::get_if<Bytes>(&*asked.device_budget)) {
      core->host_.budget = *bytes;
      core->host_.budget_given = true;
    }
  }
  if (!asked.spill_to.empty()) {
    SpillOptions spill;
    spill.folders = asked.spill_to;
    spill.budget = asked.spill_budget;
    spill.checksum = asked.checksum.value_or(true);
    auto tier = SpillTier::open(std::move(spill));
    if (!tier.ok()) throw ConfigError("spill_to: " + tier.failure().message);
    core->spill_ = std::move(tier).value();

    PoolOptions pool;
    core->staging_budget_ = std::min(asked.host_budget.value_or(default_staging(core->host_.budget)), available);
    pool.capacity = core->staging_budget_;
    pool.slab_bytes = std::min(*pool.capacity, MiB(256));
    pool.keep_spare = false;
    if (*pool.capacity >= kLeastPool) {
      auto opened = PinnedPool::create(std::move(pool));
      if (!opened.ok()) throw ConfigError("host_budget: " + opened.failure().message);
      core->pool_ = std::move(opened).value();
    }
    if (core->spill_->stats().ram)
      core->warnings_.push_back(
          "spill_to lies in memory (tmpfs): what is spilled there frees no memory; name a folder on a disk");
  }
  return core;
}

StoreCore::~StoreCore() = default;

StoreCore::Packed StoreCore::pack(std::shared_ptr<Pass>& pass, const View& view, const Hold& hold) {
  std::shared_ptr<Record> record;
  Bytes origin;
  bool crowded = false;
  {
    std::lock_guard lock(mutex_);
    stats_.packed.add(view.footprint);
    if (!pass || !pass->takes_packs_) pass = std::make_shared<Pass>(next_pass_++);
    const auto known = by_storage_.find(view.storage);
    Resident* resident = known != by_storage_.end() ? known->second : nullptr;
    if (resident != nullptr) origin = resident->origin;
    const Bytes begin = view.begin + origin;
    const Bytes end = view.end + origin;
    if (resident != nullptr) {
      for (Record* other : resident->records) {
        if (other->version_counter_ != view.version_counter || other->version_ != view.version) continue;
        const bool inside = other->begin_ <= begin && end <= other->end_;
        if (!inside && other->state_ != RecordState::kResident)
          continue;  // its bytes are on their way: too late to widen it
        record = other->weak_from_this().lock();
        if (!record) continue;
        record->begin_ = std::min(record->begin_, begin);
        record->end_ = std::max(record->end_, end);
        stats_.deduplicated.add(view.footprint);
        if (record->pass_ == pass) {
          pass->sequence_[record->slot_] = nullptr;
          record->slot_ = static_cast<uint32_t>(pass->sequence_.size());
          pass->sequence_.push_back(record.get());
        }
        break;
      }
    }
    if (!record) {
      record = std::make_shared<Record>(shared_from_this(), pass, next_record_++);
      record->version_counter_ = view.version_counter;
      record->version_ = view.version;
      record->begin_ = begin;
      record->end_ = end;
      record->footprint_ = view.footprint;
      record->slot_ = static_cast<uint32_t>(pass->sequence_.size());
      pass->sequence_.push_back(record.get());
      ++pass->live_;
      live_.push_back(*record);
      stats_.saved.add(view.footprint);
      pass->stats_.saved.add(view.footprint);
      if (resident != nullptr) {
        record->resident_ = resident->records.front()->resident_;
        resident->records.push_back(record.get());
        host_.move(*resident, DeviceTier::Place::kElsewhere);
      } else {
        auto made = std::make_shared<Resident>();
        made->tier = &host_;
        made->storage = hold();
        made->identity = view.storage;
        made->bytes = view.footprint;
        made->records.push_back(record.get());
        by_storage_.emplace(view.storage, made.get());
        host_.add(*made, DeviceTier::Place::kElsewhere);
        record->resident_ = std::move(made);
      }
    }
    look_again_locked(8);
    crowded = host_.held() > host_.budget || host_.bytes(DeviceTier::Place::kDirty) > dirty_limit_locked(pass.get()) ||
              !warnings_.empty() || !buried_.empty();
    if (!crowded) host_.note_peak();
  }
  if (crowded) settle(pass.get());
  return {std::move(record), origin};
}

void StoreCore::note_passed_through(const char* reason, Bytes footprint) {
  std::lock_guard lock(mutex_);
  stats_.packed.add(footprint);
  stats_.passed_through.add(footprint);
  passed_through_[reason].add(footprint);
}

bool StoreCore::task_began(Record& record, int task) {
  std::lock_guard lock(mutex_);
  Pass& pass = record.pass();
  if (!pass.tasks_.insert(task).second) return false;
  pass.in_backward_ = true;
  pass.next_ = pass.sequence_.size();
  return true;
}

void StoreCore::task_ended(Pass& pass, int task) noexcept {
  std::lock_guard lock(mutex_);
  pass.tasks_.erase(task);
  if (!pass.tasks_.empty()) return;  // the graph task around a reentrant one
  pass.in_backward_ = false;
  pass.takes_packs_ = false;
  if (!pass.ended_) expected_pass_ = pass.stats_.saved.bytes;
  end_pass_locked(pass);
}

void StoreCore::scope_ended(const std::shared_ptr<Pass>& pass) {
  if (pass) {
    std::lock_guard lock(mutex_);
    pass->takes_packs_ = false;
    if (pass->live_ == 0) end_pass_locked(*pass);
    // Once round the whole list: with the scope, its local variables are gone.
    int64_t elsewhere = 0;
    const auto& list = host_.list(DeviceTier::Place::kElsewhere);
    for (const Resident* r = list.front(); r != nullptr; r = list.next(*r)) ++elsewhere;
    look_again_locked(elsewhere);
  }
  settle(pass.get());
}

void StoreCore::end_pass_locked(Pass& pass) noexcept {
  if (std::exchange(pass.ended_, true)) return;
  if (pass.stats_.saved.tensors == 0) return;  // all its packs were views of older records
  ++stats_.passes;
  last_pass_ = pass.stats_;
  largest_pass_ = std::max(largest_pass_, pass.stats_.saved.bytes);
  if (options_.device_budget) {
    if (const Share* share = std::get_if<Share>(&*options_.device_budget)) {
      host_.budget = Bytes(static_cast<int64_t>(static_cast<double>(largest_pass_.count()) * share->value));
      host_.budget_given = true;
    }
  }
}

void StoreCore::forget(Record& record) noexcept {
  Work work(*this);
  {
    std::lock_guard lock(mutex_);
    Pass& pass = *record.pass_;
    (record.left_ ? stats_.spilled : stats_.kept).add(record.footprint_);
    (record.left_ ? pass.stats_.spilled : pass.stats_.kept).add(record.footprint_);
    detach_locked(record, work);
    under_way_.erase(record.id_);
    if (record.transfer_) work.cancelled.push_back(*record.transfer_);
    staging_full_ = false;
    work.exhumed.swap(buried_);
    record.become(RecordState::kDead);
    live_.remove(record);
    pass.sequence_[record.slot_] = nullptr;
    if (--pass.live_ == 0 && pass.tasks_.empty()) {
      pass.takes_packs_ = false;
      end_pass_locked(pass);
    }
    if (pass.in_backward_) prefetch_locked(pass, work);
  }
  changed_.notify_all();  // there is room
  work.run();
}

Record* StoreCore::arrived_locked(uint64_t record_id) noexcept {
  const auto found = under_way_.find(record_id);
  if (found == under_way_.end()) return nullptr;
  Record* record = found->second;
  under_way_.erase(found);
  record->transfer_.reset();
  return record;
}

void StoreCore::detach_locked(Record& record, Work& work) {
  const std::shared_ptr<Resident> resident = std::move(record.resident_);
  record.resident_ = nullptr;
  if (!resident) return;
  std::erase(resident->records, &record);
  if (!resident->records.empty()) {
    place_locked(*resident);
    return;
  }
  resident->tier->remove(*resident);
  if (resident->identity != nullptr) by_storage_.erase(resident->identity);
  work.dropped.push_back(resident);
}

void StoreCore::place_locked(Resident& resident) noexcept {
  const DeviceTier::Place before = resident.tier->place_of(resident);
  const DeviceTier::Place place = place_by_states(resident);
  if (before != DeviceTier::Place::kElsewhere && place != before) resident.tier->move(resident, place);
}

DeviceTier::Place StoreCore::place_by_states(const Resident& resident) noexcept {
  using Place = DeviceTier::Place;
  Place place = Place::kClean;
  for (const Record* record : resident.records) {
    if (record->state_ == RecordState::kReturning) return Place::kReturning;
    if (record->state_ == RecordState::kLeaving) place = Place::kLeaving;
    if (record->state_ == RecordState::kResident && place == Place::kClean) place = Place::kDirty;
  }
  return place;
}

void StoreCore::close() {
  refuse_packs();
  closed_ = true;
  for (;;) {
    Work work(*this);
    {
      std::unique_lock lock(mutex_);
      work.exhumed.swap(buried_);
      const auto under_way = [&] {
        return host_.bytes(DeviceTier::Place::kLeaving) + host_.bytes(DeviceTier::Place::kReturning) > Bytes(0);
      };
      for (Record* record = live_.front(); record != nullptr; record = live_.next(*record))
        if (record->state_ == RecordState::kLower) begin_return_locked(*record, Urgency::kDemand, work);
      if (work.empty()) {
        if (!under_way()) break;
        wait(lock, nullptr, [&] { return !under_way(); });
        continue;
      }
    }
    work.run();
  }
  if (spill_) spill_->close();
  deliver_warnings();
}

void StoreCore::wait(std::unique_lock<std::mutex>& lock, Pass* stalled, const std::function<bool()>& done) {
  using Clock = std::chrono::steady_clock;
  const auto begin = Clock::now();
  const std::shared_ptr<Waiter> waiter = waiter_;
  lock.unlock();
  void* released = waiter ? waiter->release() : nullptr;
  lock.lock();
  try {
    while (!done()) {
      if (changed_.wait_for(lock, std::chrono::milliseconds(100)) == std::cv_status::timeout && waiter) {
        lock.unlock();
        waiter->check();
        lock.lock();
      }
    }
  } catch (...) {
    waiter->resume(released);  // only check() throws, and it runs without the lock
    throw;
  }
  lock.unlock();
  if (waiter) waiter->resume(released);
  lock.lock();
  const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
  stats_.stall_s += seconds;
  if (stalled != nullptr) stalled->stats_.stall_s += seconds;
}

void StoreCore::warn_once_locked(const std::string& key, std::string text) {
  if (std::find(warned_.begin(), warned_.end(), key) != warned_.end()) return;
  warned_.push_back(key);
  warnings_.push_back(std::move(text));
}

void StoreCore::deliver_warnings() {
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

Bytes StoreCore::trim() {
  return pool_ ? pool_->trim() : Bytes(0);
}

Stats StoreCore::stats() const {
  Stats stats;
  {
    std::lock_guard lock(mutex_);
    stats = stats_;
    for (const auto& [reason, count] : passed_through_) stats.passed_through_reasons[reason] = count;
    stats.device = {host_.held(), host_.peak(), host_.budget};
    stats.referenced_elsewhere = host_.bytes(DeviceTier::Place::kElsewhere);
  }
  stats.handed_over = Bytes(handed_over_.load());
  if (pool_) {
    const PoolStats pool = pool_->stats();
    stats.host = {pool.slab_bytes, pool.peak_slab_bytes, staging_budget_};
  }
  if (spill_) {
    const SpillStats spill = spill_->stats();
    stats.spill = {spill.bytes, spill.peak_bytes, spill.budget};
    stats.disk_write = {spill.written, spill.write_busy_s};
    stats.disk_read = {spill.read, spill.read_busy_s};
  }
  return stats;
}

PassStats StoreCore::last_pass() const {
  std::lock_guard lock(mutex_);
  return last_pass_;
}

std::string StoreCore::report() const {
  return render_report(stats(), last_pass(),
                       {.min_bytes = min_bytes_, .spill = spill_ ? spill_->stats().description : std::string()});
}

}  // namespace ebbtide
