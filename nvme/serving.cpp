// What a tier's queues are given to do, and what becomes of it: on the queues' threads.
#include <ebbtide/nvme/tier_state.h>

#include <cerrno>
#include <string>
#include <utility>

namespace ebbtide::nvme {
namespace {

// After a demand read.
constexpr int kFewWrites = 16;

}  // namespace

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

/// Keeps the first failure; what has not been handed to a queue is dropped, and a write's is not written today.
void TierState::fail_locked(Transfer& transfer, Failure failure) noexcept {
  if (!transfer.failure) transfer.failure = std::move(failure);
  leave_lines_locked(transfer);
  uint64_t dropped = 0;
  for (auto& segments : transfer.waiting) {
    for (const uint32_t index : segments) dropped += transfer.segments[index].bytes;
    segments.clear();
  }
  if (transfer.kind == TransferKind::kWrite && dropped > 0)
    allowance_.give_back(dropped, transfer.allowed_at, Clock::now());
  transfer.waiting_count = 0;
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

}  // namespace ebbtide::nvme
