// How a tier begins and ends, and what callers ask of it.
#include <ebbtide/nvme/tier_state.h>

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <string>
#include <utility>

namespace ebbtide::nvme {
namespace {

Failure closed() {
  return {FailureCode::kCancelled, 0, "The spill tier is closed."};
}

Failure withdrawn() {
  return {FailureCode::kCancelled, 0, "The transfer was withdrawn before it began."};
}

uint64_t total_bytes(const std::vector<IoPiece>& pieces) {
  uint64_t bytes = 0;
  for (const IoPiece& piece : pieces) bytes += piece.bytes;
  return bytes;
}

}  // namespace

// --- opening and ending

Result<std::shared_ptr<TierState>> TierState::open(const SpillOptions& options, const QueueFactory& start_queue) {
  Result<std::shared_ptr<SpillSpace>> space = SpillSpace::open(options);
  if (!space) return std::move(space).failure();
  auto state = std::shared_ptr<TierState>(new TierState(std::move(space).value(), options));
  const SpillSpace& files = *state->space_;
  std::string why_not;
  for (uint32_t i = 0; i < files.file_count(); ++i) {
    QueueOptions queue_options;
    queue_options.fd = files.file(i).fd();
    queue_options.length_alignment = files.file(i).alignment().length;
    queue_options.unfit_for_io_uring = files.file(i).unfit_for_io_uring();
    if (options.bytes_in_flight) {
      queue_options.bytes_in_flight = static_cast<size_t>(std::max<int64_t>(options.bytes_in_flight->count(), 1));
    }
    Lane* lane = state->lanes_[i].get();
    StartedQueue queue = start_queue(queue_options, std::shared_ptr<IoSource>(state, lane), why_not);
    if (!queue) {
      state->stop();  // the lanes that run already
      return std::move(queue).failure();
    }
    lane->queue = std::move(queue).value();
  }
  state->io_uring_ = why_not.empty();
  state->description_ = state->lanes_.front()->queue->name();
  if (!why_not.empty()) state->description_ += " (not io_uring: " + why_not + ")";
  for (uint32_t i = 0; i < files.file_count(); ++i) {
    state->description_ += (i == 0 ? "; " : ", ") + files.file(i).description();
  }
  return state;
}

TierState::TierState(std::shared_ptr<SpillSpace> space, const SpillOptions& options)
    : space_(std::move(space)),
      checksum_(options.checksum),
      allowance_(options.most_written_a_day
                     ? std::optional(static_cast<uint64_t>(std::max<int64_t>(options.most_written_a_day->count(), 0)))
                     : std::nullopt,
                 Clock::now()) {
  for (uint32_t i = 0; i < space_->file_count(); ++i) lanes_.push_back(std::make_unique<Lane>(*this, i));
}

TierState::~TierState() {
  space_->close_files();
}

void TierState::stop() noexcept {
  if (space_->forked()) return;  // the parent's mutex may be held by a thread that this process does not have
  std::unique_lock lock(mutex_);
  refusing_ = stopped_ = true;
  for (auto& [id, transfer] : transfers_) {
    if (transfer->begun || transfer->failure) continue;
    fail_locked(*transfer, withdrawn());
    withdrawn_.push_back(id);
  }
  wake(lock);
}

void TierState::close() {
  if (space_->forked()) return;
  std::unique_lock lock(mutex_);
  refusing_ = true;
  all_done_.wait(lock, [&] { return transfers_.empty(); });
  stopped_ = true;
  wake(lock);
}

// --- asking for transfers

std::optional<Failure> TierState::objection(const std::vector<IoPiece>& pieces) const {
  if (space_->forked()) {
    return Failure{FailureCode::kUnsupported, 0, "The spill tier belongs to the process that forked this one."};
  }
  const IoAlignment align = alignment();
  for (const IoPiece& piece : pieces) {
    if (reinterpret_cast<uintptr_t>(piece.data) % align.memory != 0 || piece.bytes % align.length != 0) {
      return Failure{FailureCode::kInvalid, EINVAL,
                     "Memory to spill must be aligned to " + std::to_string(align.memory) + " bytes, its length to " +
                         std::to_string(align.length) + "."};
    }
  }
  if (total_bytes(pieces) == 0) return Failure{FailureCode::kInvalid, EINVAL, "Nothing to transfer: no bytes given."};
  return {};
}

Result<SpillTier::TransferId> TierState::write(uint64_t name, std::vector<IoPiece> pieces, SpillTier::WriteDone done) {
  if (auto failure = objection(pieces)) return *std::move(failure);
  auto item = std::make_shared<Item>(space_, name, total_bytes(pieces));
  {
    std::lock_guard lock(mutex_);
    if (refusing_) return closed();
    item->generation = ++last_generation_;
  }
  auto extents = space_->allocate(item->bytes);
  if (!extents) return std::move(extents).failure();
  item->extents = std::move(extents).value();
  Clock::time_point allowed_at;
  {
    std::lock_guard lock(mutex_);
    allowed_at = Clock::now();
    if (!allowance_.take(item->bytes, allowed_at)) {
      return Failure{FailureCode::kNoSpace, 0,
                     "What may be written in 24 hours (spill_daily_writes) has been: " +
                         to_string(Bytes(static_cast<int64_t>(allowance_.taken()))) + "."};
    }
  }
  if (checksum_) item->checksums.resize((item->bytes + kChunkBytes - 1) / kChunkBytes);

  auto transfer = std::make_unique<Transfer>();
  transfer->kind = TransferKind::kWrite;
  transfer->allowed_at = allowed_at;
  transfer->item = std::move(item);
  transfer->pieces = std::move(pieces);
  transfer->write_done = std::move(done);
  const uint64_t id = enqueue(transfer);
  if (id == 0) return closed();
  return id;
}

SpillTier::TransferId TierState::read(const SpilledItem& spilled, std::vector<IoPiece> pieces,
                                      SpillTier::Priority priority, SpillTier::ReadDone done) {
  const std::shared_ptr<Item>& item = spilled.item_;
  std::optional<Failure> failure = objection(pieces);
  if (!failure && (item == nullptr || item->space != space_ || item->bytes != total_bytes(pieces))) {
    failure = Failure{FailureCode::kInvalid, EINVAL, "This item is not in this spill tier, or has another size."};
  }
  if (!failure) {
    auto transfer = std::make_unique<Transfer>();
    transfer->kind = priority == SpillTier::Priority::kDemand ? TransferKind::kDemand : TransferKind::kPrefetch;
    transfer->item = item;
    transfer->pieces = std::move(pieces);
    transfer->read_done = std::move(done);
    const uint64_t id = enqueue(transfer);
    if (id != 0) return id;
    done = std::move(transfer->read_done);
    failure = closed();
  }
  done(*std::move(failure));
  return 0;
}

/// 0: refused, and `transfer` is still the caller's.
uint64_t TierState::enqueue(std::unique_ptr<Transfer>& transfer) {
  Transfer& t = *transfer;
  t.segments = cut_into_segments(*t.item, t.pieces);
  t.waiting.resize(lanes_.size());
  t.chunk_segments_left.resize((t.item->bytes + kChunkBytes - 1) / kChunkBytes);
  t.chunk_read_again.resize(t.chunk_segments_left.size());
  t.waiting_count = t.segments.size();
  for (uint32_t i = 0; i < t.segments.size(); ++i) {
    t.waiting[t.item->extents[t.segments[i].extent].file].push_back(i);
    ++t.chunk_segments_left[t.segments[i].chunk];
  }
  std::unique_lock lock(mutex_);
  if (refusing_) return 0;
  const uint64_t id = t.id = ++last_id_;
  transfers_.emplace(id, std::move(transfer));
  put_in_line_locked(t);
  wake(lock);
  return id;
}

void TierState::raise_priority(uint64_t id) {
  if (space_->forked()) return;
  std::lock_guard lock(mutex_);
  const auto found = transfers_.find(id);
  if (found == transfers_.end() || found->second->kind != TransferKind::kPrefetch) return;
  Transfer& transfer = *found->second;
  leave_lines_locked(transfer);
  transfer.kind = TransferKind::kDemand;
  put_in_line_locked(transfer);  // no lane sleeps while one of its lines is not empty, so there is nobody to wake
}

void TierState::cancel(uint64_t id) {
  if (space_->forked()) return;
  std::unique_lock lock(mutex_);
  const auto found = transfers_.find(id);
  if (found == transfers_.end() || found->second->begun || found->second->failure) return;
  fail_locked(*found->second, withdrawn());
  // Here, and not on an I/O thread: while a disk hangs, all of those are in the kernel, and the memory and the room of
  // what was withdrawn would stay taken.
  finish(lock, *found->second);
}

SpillStats TierState::stats() const {
  SpillStats stats;
  if (space_->forked()) return stats;
  space_->report(stats);
  stats.io_uring = io_uring_;
  stats.ram = space_->ram();
  for (const auto& lane : lanes_) stats.registered += Bytes(static_cast<int64_t>(lane->queue->registered_bytes()));
  stats.description = description_;
  std::lock_guard lock(mutex_);
  stats.written = Bytes(written_);
  stats.read = Bytes(read_);
  stats.errors = errors_;
  stats.write_busy_s = write_busy_.seconds();
  stats.read_busy_s = read_busy_.seconds();
  const std::vector<double> shares = space_->shares();
  for (const auto& lane : lanes_) {
    const std::chrono::duration<double> silent =
        lane->in_flight > 0 ? Clock::now() - lane->heard_at : Clock::duration{};
    stats.folders.push_back({space_->file(lane->index).folder(), Bytes(lane->written), Bytes(lane->read),
                             lane->write_busy.seconds(), lane->read_busy.seconds(), shares[lane->index],
                             silent.count()});
  }
  return stats;
}

void TierState::use_memory(std::byte* data, size_t bytes) noexcept {
  for (const auto& lane : lanes_) lane->queue->use_memory(data, bytes);
}

void TierState::forget_memory(const std::byte* data, size_t bytes) noexcept {
  for (const auto& lane : lanes_) lane->queue->forget_memory(data, bytes);
}

}  // namespace ebbtide::nvme
