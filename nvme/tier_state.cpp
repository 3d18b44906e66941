#include <ebbtide/nvme/checksum.h>
#include <ebbtide/nvme/tier_state.h>

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <string>
#include <utility>

namespace ebbtide::nvme {
namespace {

// After a demand read.
constexpr int kFewWrites = 16;

Failure closed() {
  return {FailureCode::kCancelled, 0, "The spill tier is closed."};
}

uint64_t total_bytes(const std::vector<IoPiece>& pieces) {
  uint64_t bytes = 0;
  for (const IoPiece& piece : pieces) bytes += piece.bytes;
  return bytes;
}

/// The checksum of one chunk as it lies in memory.
uint64_t chunk_checksum(const Item& item, uint32_t chunk, const std::vector<IoPiece>& pieces) {
  const uint64_t begin = chunk * kChunkBytes;
  const uint64_t end = std::min(begin + kChunkBytes, item.bytes);
  std::vector<HashedRun> runs;
  uint64_t at = 0;
  for (const IoPiece& piece : pieces) {
    const uint64_t from = std::max(begin, at), to = std::min(end, at + piece.bytes);
    if (from < to) runs.push_back({piece.data + (from - at), to - from});
    at += piece.bytes;
  }
  return checksum({item.name, item.generation, begin}, runs);
}

}  // namespace

std::vector<Segment> cut_into_segments(const Item& item, const std::vector<IoPiece>& pieces) {
  std::vector<Segment> segments;
  uint64_t at = 0;  // in the item
  size_t piece = 0, in_piece = 0;
  uint32_t extent = 0;
  uint64_t in_extent = 0;
  while (at < item.bytes) {
    if (in_piece == pieces[piece].bytes) {
      ++piece;
      in_piece = 0;
      continue;
    }
    const Extent& place = item.extents[extent].extent;
    if (in_extent == place.bytes) {
      ++extent;
      in_extent = 0;
      continue;
    }
    const uint64_t bytes = std::min({kChunkBytes - at % kChunkBytes, uint64_t{pieces[piece].bytes - in_piece},
                                     place.bytes - in_extent, item.bytes - at});
    segments.push_back({pieces[piece].data + in_piece, static_cast<uint32_t>(bytes),
                        static_cast<uint32_t>(at / kChunkBytes), extent, place.offset + in_extent});
    at += bytes;
    in_piece += bytes;
    in_extent += bytes;
  }
  return segments;
}

double TierState::BusyTime::seconds() const noexcept {
  const Clock::duration now = count_ > 0 ? Clock::now() - since_ : Clock::duration{};
  return std::chrono::duration<double>(total_ + now).count();
}

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
    if (!transfer->begun) withdraw_locked(*transfer);
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
  {
    std::lock_guard lock(mutex_);
    if (!allowance_.take(item->bytes, Clock::now())) {
      return Failure{FailureCode::kNoSpace, 0,
                     "What may be written in 24 hours (spill_daily_writes) has been: " +
                         to_string(Bytes(static_cast<int64_t>(allowance_.taken()))) + "."};
    }
  }
  if (checksum_) item->checksums.resize((item->bytes + kChunkBytes - 1) / kChunkBytes);

  auto transfer = std::make_unique<Transfer>();
  transfer->kind = TransferKind::kWrite;
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
  withdraw_locked(*found->second);
  wake(lock);
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

// --- what the queues' threads do

IoSource::Next TierState::next(Lane& lane, IoRequest& request) noexcept {
  std::unique_lock lock(mutex_);
  while (!withdrawn_.empty()) {
    Transfer& transfer = *transfers_.at(withdrawn_.front());
    withdrawn_.pop_front();
    finish(lock, transfer);
    lock.lock();
  }
  Transfer* transfer = front_locked(lane);
  if (transfer == nullptr) {
    if (stopped_ && transfers_.empty()) return IoSource::Next::kFinished;
    lane.asleep = true;
    return IoSource::Next::kNothing;
  }
  std::deque<uint32_t>& waiting = transfer->waiting[lane.index];
  const uint32_t index = waiting.front();
  waiting.pop_front();
  if (waiting.empty()) std::erase(line_of(lane, transfer->kind), transfer->id);
  --transfer->waiting_count;
  ++transfer->in_flight;
  transfer->begun = true;
  const bool write = transfer->kind == TransferKind::kWrite;
  (write ? write_busy_ : read_busy_).begin();
  (write ? lane.write_busy : lane.read_busy).begin();
  lane.writes_in_flight += write;
  if (write && lane.few_writes > 0) --lane.few_writes;
  if (transfer->kind == TransferKind::kDemand) lane.few_writes = kFewWrites;
  if (lane.in_flight++ == 0) lane.heard_at = Clock::now();
  const Segment& segment = transfer->segments[index];
  request = {write, segment.data, segment.bytes, segment.offset, transfer->id, index};
  return IoSource::Next::kRequest;
}

void TierState::completed(Lane& lane, const IoRequest& request, int error) noexcept {
  std::unique_lock lock(mutex_);
  Transfer& transfer = *transfers_.at(request.transfer);
  (request.write ? write_busy_ : read_busy_).end();
  (request.write ? lane.write_busy : lane.read_busy).end();
  --lane.in_flight;
  lane.writes_in_flight -= request.write;
  if (transfer.kind == TransferKind::kDemand) lane.few_writes = kFewWrites;
  lane.heard_at = Clock::now();
  if (error != 0) {
    segment_failed_locked(transfer, request.segment, error);
  } else {
    (request.write ? written_ : read_) += request.bytes;
    (request.write ? lane.written : lane.read) += request.bytes;
    if (request.write) measure_locked(lane);
    segment_arrived(lock, transfer, transfer.segments[request.segment]);
  }
  --transfer.in_flight;
  if (transfer.in_flight == 0 && transfer.waiting_count == 0) {
    finish(lock, transfer);
  } else {
    wake(lock);  // segments to be read again may wait in a lane that sleeps
  }
}

/// Now and then tells the space how fast a folder takes writes, which its share follows.
void TierState::measure_locked(Lane& lane) noexcept {
  constexpr double kLongEnough = 0.25;  // seconds
  constexpr int64_t kMuchEnough = int64_t{8} << 20;
  if (lanes_.size() == 1) return;
  const double busy = lane.write_busy.seconds(), seconds = busy - lane.busy_at_measure;
  const int64_t bytes = lane.written - lane.written_at_measure;
  if (seconds <= 0 || (seconds < kLongEnough && bytes < kMuchEnough)) return;
  space_->note_speed(lane.index, static_cast<double>(bytes) / seconds);
  lane.busy_at_measure = busy;
  lane.written_at_measure = lane.written;
}

/// The last segment of a chunk brings its checksum up to date, without the lock: `transfer` stays, since this segment
/// still counts as in flight.
void TierState::segment_arrived(std::unique_lock<std::mutex>& lock, Transfer& transfer,
                                const Segment& segment) noexcept {
  if (--transfer.chunk_segments_left[segment.chunk] > 0 || !checksum_ || transfer.failure) return;
  const bool write = transfer.kind == TransferKind::kWrite;  // under the lock: a prefetch may be raised meanwhile
  lock.unlock();
  const uint64_t sum = chunk_checksum(*transfer.item, segment.chunk, transfer.pieces);
  uint64_t& kept = transfer.item->checksums[segment.chunk];
  if (write) kept = sum;
  const bool right = kept == sum;
  lock.lock();
  if (right || transfer.failure) return;
  ++errors_;
  const auto in_chunk = [&](const Segment& other) { return other.chunk == segment.chunk; };
  if (!transfer.chunk_read_again[segment.chunk]) {  // the way to the disk may be at fault, not the disk
    transfer.chunk_read_again[segment.chunk] = true;
    for (uint32_t i = 0; i < transfer.segments.size(); ++i) {
      if (!in_chunk(transfer.segments[i])) continue;
      ++transfer.chunk_segments_left[segment.chunk];
      wait_again_locked(transfer, i);
    }
    return;
  }
  for (const Segment& other : transfer.segments) {
    if (in_chunk(other)) transfer.item->extents[other.extent].bad = true;
  }
  const SpillFile& file = space_->file(transfer.item->extents[segment.extent].file);
  fail_locked(transfer, {FailureCode::kCorrupt, 0,
                         "The bytes read from " + file.folder() + " at offset " + std::to_string(segment.offset) +
                             " are not those that were written: wrong checksum, twice."});
}

void TierState::segment_failed_locked(Transfer& transfer, uint32_t index, int error) noexcept {
  ++errors_;
  const Segment& segment = transfer.segments[index];
  PlacedExtent& place = transfer.item->extents[segment.extent];
  const bool write = transfer.kind == TransferKind::kWrite;
  if (!write && transfer.read_retries > 0 && !transfer.failure) {
    --transfer.read_retries;
    wait_again_locked(transfer, index);
    return;
  }
  // A file system may lack room for bytes that were reserved (a sparse image, a quota), and the limit on a process's files
  // may be lowered: then nothing is wrong with the place.
  const bool full = write && (error == ENOSPC || error == EDQUOT || error == EFBIG);
  if (!full) place.bad = true;
  fail_locked(transfer, system_failure(full ? FailureCode::kNoSpace : FailureCode::kIo, error,
                                       std::string(write ? "Writing " : "Reading ") + std::to_string(segment.bytes) +
                                           " bytes at offset " + std::to_string(segment.offset) +
                                           " of the spill file in " + space_->file(place.file).folder() + " failed"));
}

/// One more attempt of a segment that is being completed.
void TierState::wait_again_locked(Transfer& transfer, uint32_t index) noexcept {
  leave_lines_locked(transfer);
  transfer.waiting[transfer.item->extents[transfer.segments[index].extent].file].push_back(index);
  ++transfer.waiting_count;
  put_in_line_locked(transfer);
}

/// Keeps the first failure; what has not been handed to a queue is dropped.
void TierState::fail_locked(Transfer& transfer, Failure failure) noexcept {
  if (!transfer.failure) transfer.failure = std::move(failure);
  leave_lines_locked(transfer);
  for (auto& segments : transfer.waiting) segments.clear();
  transfer.waiting_count = 0;
}

void TierState::withdraw_locked(Transfer& transfer) noexcept {
  if (transfer.failure) return;
  fail_locked(transfer, {FailureCode::kCancelled, 0, "The transfer was withdrawn before it began."});
  withdrawn_.push_back(transfer.id);
}

/// Tells the caller, lets go of what the caller gave, forgets the transfer. Takes a held lock, leaves it open.
void TierState::finish(std::unique_lock<std::mutex>& lock, Transfer& transfer) noexcept {
  lock.unlock();
  // Nobody else touches the transfer now: no segment is waiting or in flight, and cancel() leaves what has begun or
  // failed alone.
  std::shared_ptr<Item> item = std::move(transfer.item);
  if (transfer.write_done) {
    auto done = std::move(transfer.write_done);
    if (transfer.failure) {
      item.reset();
      done(*std::move(transfer.failure));
    } else {
      done(SpilledItem(std::move(item)));
    }
  } else {
    auto done = std::move(transfer.read_done);
    item.reset();
    done(transfer.failure ? Status(*std::move(transfer.failure)) : success());
  }
  lock.lock();
  transfers_.erase(transfer.id);
  if (transfers_.empty()) all_done_.notify_all();
  wake(lock);
}

// --- lines

std::deque<uint64_t>& TierState::line_of(Lane& lane, TransferKind kind) noexcept {
  switch (kind) {
    case TransferKind::kDemand:
      return lane.demand;
    case TransferKind::kPrefetch:
      return lane.prefetches;
    case TransferKind::kWrite:
      break;
  }
  return lane.writes;
}

/// What the lane is to work on: demand reads first, then writes and prefetches in turns, each in order of asking.
Transfer* TierState::front_locked(Lane& lane) noexcept {
  const std::deque<uint64_t>* line = &lane.demand;
  if (line->empty()) {
    lane.writes_turn = !lane.writes_turn;
    const bool write = !lane.writes.empty() && (lane.writes_turn || lane.prefetches.empty()) && may_write_locked(lane);
    line = write ? &lane.writes : &lane.prefetches;
  }
  return line->empty() ? nullptr : transfers_.at(line->front()).get();
}

/// A demand read overtakes what waits, but not what the device has begun: while such reads come, and for kFewWrites
/// after, the device has two writes at a time. When one ends, its thread asks for the next.
bool TierState::may_write_locked(const Lane& lane) const noexcept {
  return lane.few_writes == 0 || lane.writes_in_flight < 2;
}

void TierState::put_in_line_locked(Transfer& transfer) noexcept {
  for (auto& lane : lanes_) {
    if (!transfer.waiting[lane->index].empty()) line_of(*lane, transfer.kind).push_back(transfer.id);
  }
}

void TierState::leave_lines_locked(Transfer& transfer) noexcept {
  for (auto& lane : lanes_) std::erase(line_of(*lane, transfer.kind), transfer.id);
}

void TierState::wake(std::unique_lock<std::mutex>& lock) noexcept {
  std::vector<IoQueue*> sleepers;
  for (auto& lane : lanes_) {
    const bool work = !lane->demand.empty() || !lane->writes.empty() || !lane->prefetches.empty() ||
                      !withdrawn_.empty() || (stopped_ && transfers_.empty());
    if (!lane->asleep || !work || !lane->queue) continue;
    lane->asleep = false;
    sleepers.push_back(lane->queue.get());
  }
  lock.unlock();
  for (IoQueue* queue : sleepers) queue->notify();
}

}  // namespace ebbtide::nvme
