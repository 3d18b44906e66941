#include <ebbtide/transfer/copy_lane.h>

#include <algorithm>
#include <cassert>
#include <utility>

namespace ebbtide {
namespace {

constexpr Bytes kAlwaysTimed = MiB(4);  // two events more are nothing to what these take

size_t total_bytes(const CopyChunks& chunks, size_t first) {
  size_t bytes = 0;
  for (size_t i = first; i < chunks.size(); ++i) bytes += chunks[i].total_bytes();
  return bytes;
}

}  // namespace

CopyLane::CopyLane(Device& device, const Clock& clock, Direction direction, CopyLaneOptions options)
    : device_(device),
      clock_(clock),
      direction_(direction),
      stream_(device.copy_stream(direction)),
      options_(std::move(options)),
      bandwidth_(options_.bandwidth) {}

CopyLane::~CopyLane() {
  close();
  if (!in_flight_.empty()) new Queue<Batch>(std::move(in_flight_));  // see Lifetime
  if (!queue_.empty()) new Queue<CopyJobPtr>(std::move(queue_));     // copies enqueued, event still to be recorded
}

CopyJobPtr CopyLane::submit(CopyRequest request) {
  const bool demanded = request.urgency == Urgency::kDemand;
  const CopyJobPtr job = std::allocate_shared<CopyJob>(job_memory_, CopyJob::ByLane(), std::move(request));
  {
    Lock lock(mutex_);
    ++stats_.jobs;
    job->bytes_ = Bytes(static_cast<int64_t>(total_bytes(job->request_.chunks, 0)));
    stats_.queued += job->bytes_;
    queue_.push_back(job);
    if (closed_) cancel_locked(job);
  }
  if (demanded) {
    (void)demand(job);  // a failure is the job's; without an event it stays first in the queue
  } else {
    pump();
  }
  return job;
}

Result<EventPtr> CopyLane::demand(const CopyJobPtr& job) {
  Lock lock(mutex_);
  released_.wait(lock, [&] { return !job->held_; });
  std::optional<Failure> no_event;
  if (job->state() == CopyState::kQueued) {
    ++stats_.demands;
    std::erase(queue_, job);
    no_event = enqueue(lock, job, job->request_.chunks.size());
  }
  Result<EventPtr> answer = job->failure_ ? Result<EventPtr>(*job->failure_)
                            : no_event    ? Result<EventPtr>(*std::move(no_event))
                                          : Result<EventPtr>(job->event_);
  deliver(lock);
  return answer;
}

void CopyLane::cancel(const CopyJobPtr& job) {
  Lock lock(mutex_);
  cancel_locked(job);
  deliver(lock);
}

void CopyLane::pump() {
  Lock lock(mutex_);
  if (pumping_) return;
  pumping_ = true;
  poll(lock);
  deliver(lock);
  feed(lock);
  // Under the same lock as feed()'s last look at the queue: a job submitted from now on is fed by its own submit().
  pumping_ = false;
  deliver(lock);
}

void CopyLane::close() {
  Lock lock(mutex_);
  closed_ = true;
  const Queue<CopyJobPtr> queued = queue_;
  for (const CopyJobPtr& job : queued) cancel_locked(job);
  deliver(lock);
}

bool CopyLane::idle() const {
  const Lock lock(mutex_);
  return queue_.empty() && in_flight_.empty() && ended_.empty() && enqueuing_ == 0 && delivering_ == 0 && !pumping_;
}

CopyLaneStats CopyLane::stats() const {
  const Lock lock(mutex_);
  return stats_;
}

Bandwidth CopyLane::bandwidth() const {
  const Lock lock(mutex_);
  return bandwidth_;
}

// REQUIRES: pumping_, so that no other thread takes batches away.
void CopyLane::poll(Lock& lock) {
  while (!in_flight_.empty()) {
    const EventPtr event = in_flight_.front().event, timed_from = in_flight_.front().timed_from;
    lock.unlock();
    const Result<bool> passed = device_.passed(event);
    const Time now = clock_.now();
    std::optional<Timed> timed;
    if (timed_from && passed.ok() && passed.value()) timed = time_of(timed_from, event);
    lock.lock();
    if (passed.ok() && !passed.value()) {
      in_flight_.front().last_pending = now;
      return;  // one stream: nothing behind it has passed, or it is seen to a moment later
    }
    if (!passed.ok() && !means_lost(passed.failure().code)) return;  // nobody knows: its memory stays in use
    const Batch batch = std::move(in_flight_.front());
    in_flight_.pop_front();
    const CopyJobPtr& job = batch.job;
    --job->batches_in_flight_;
    if (passed.ok()) {
      measure_locked(batch, now, timed);
      stats_.copied += batch.bytes;
    } else if (!job->failure_) {
      job->failure_ = passed.failure();  // the device is lost: it touches memory no more, nor takes the job's next copy
    }
    count_in_flight_locked(-batch.bytes.count());
    last_end_ = now;
    end_if_over_locked(job);
  }
}

void CopyLane::feed(Lock& lock) {
  while (!queue_.empty()) {
    const CopyJobPtr job = queue_.front();
    const size_t end = fitting_end_locked(*job);
    const bool copies_left = job->next_chunk_ < job->request_.chunks.size();
    if (copies_left && end == job->next_chunk_ && job->unrecorded_bytes_ == 0) return;  // no room
    queue_.pop_front();
    if (enqueue(lock, job, end)) return;  // no event to be had now
  }
}

// Enqueues the job's chunks before `chunks_end`, and an event after them. The job is not in the queue; it is put back
// in front if work is left. Two threads may be in here at once with two jobs: on the one stream their waits and copies
// mix, which can only make a copy later than it need be. Returns a failure only where the device has no event to give
// now.
std::optional<Failure> CopyLane::enqueue(Lock& lock, const CopyJobPtr& job, size_t chunks_end) {
  CopyRequest& request = job->request_;
  const size_t first = job->next_chunk_;
  job->held_ = true;
  const int64_t turn = ++enqueues_;
  const bool timing = enqueuing_++ == 0 && wants_timing_locked(*job);
  lock.unlock();

  const Time begin = clock_.now();
  std::optional<Failure> broken;
  if (request.after) {
    if (Status waiting = device_.wait(stream_, request.after); !waiting.ok()) broken = waiting.failure();
    request.after.reset();
  }
  Result<EventPtr> timed_from = EventPtr();
  if (timing && !broken) timed_from = device_.record_timed(stream_);  // a failure is not the job's
  const bool timed = timed_from.ok() && timed_from.value();
  size_t next = first;
  size_t bytes = 0;
  if (!broken && first < chunks_end) {
    CopiesEnqueued copies =
        device_.copy_each({request.chunks.begin() + first, chunks_end - first}, direction_, stream_);
    for (; next < first + copies.count; ++next) bytes += request.chunks[next].total_bytes();
    broken = std::move(copies.refused);
  }
  // After a failed copy those before it run: the job's next turn is for the event after them.
  std::optional<Result<EventPtr>> event;
  if (!broken) event = timed ? device_.record_timed(stream_) : device_.record(stream_);
  const Time now = clock_.now();

  lock.lock();
  --enqueuing_;
  if (!timed_from.ok() && timed_from.failure().code == FailureCode::kUnsupported) times_ = false;
  job->held_ = false;
  job->next_chunk_ = next;
  job->unrecorded_bytes_ += bytes;
  stats_.queued -= Bytes(static_cast<int64_t>(bytes));
  count_in_flight_locked(static_cast<int64_t>(bytes));
  std::optional<Failure> no_event;
  if (event && event->ok()) {
    const bool mixed = turn != enqueues_;  // with another job's copies
    if (timed && options_.link) options_.link->enqueued(direction_, {timed_from.value(), event->value()});
    in_flight_.push_back(Batch{job, event->value(), timed && !mixed ? std::move(timed_from).value() : nullptr,
                               Bytes(static_cast<int64_t>(job->unrecorded_bytes_)), begin, now, opposite_busy()});
    ++job->batches_in_flight_;
    job->unrecorded_bytes_ = 0;
  } else if (event && !means_lost(event->failure().code)) {
    no_event = event->failure();
  } else if (event) {
    broken = event->failure();  // the device is lost: it touches memory no more
    count_in_flight_locked(-static_cast<int64_t>(job->unrecorded_bytes_));
    job->unrecorded_bytes_ = 0;
  }

  if (broken && !job->failure_) job->failure_ = std::move(broken);
  if (job->state() == CopyState::kQueued) {
    if (job->failure_) {
      stop_locked(job);
    } else if (!no_event && next == request.chunks.size()) {
      job->event_ = event->value();
      become_locked(*job, CopyState::kEnqueued);
    } else if (job->cancel_requested_) {
      cancel_locked(job);
    }
  }
  if (job->has_work()) queue_.push_front(job);
  end_if_over_locked(job);
  released_.notify_all();
  return no_event;
}

// Calls what callers left to be called. Several threads may be in here, each with jobs of its own.
void CopyLane::deliver(Lock& lock) {
  while (!ended_.empty()) {
    Queue<CopyJobPtr> ended(ended_.get_allocator());
    ended.swap(ended_);
    ++delivering_;
    lock.unlock();
    for (const CopyJobPtr& job : ended) {
      const CopyRequest request = std::exchange(job->request_, {});  // what it owns dies after done(), outside the lock
      if (request.done) request.done(job->state() == CopyState::kPassed ? success() : Status(job->failure()));
    }
    lock.lock();
    --delivering_;
  }
}

// How far the job may be enqueued within the cap, in one batch.
size_t CopyLane::fitting_end_locked(const CopyJob& job) const {
  const CopyChunks& chunks = job.request_.chunks;
  Bytes in_flight = stats_.in_flight, batch;
  size_t end = job.next_chunk_;
  while (end < chunks.size()) {
    const Bytes bytes(static_cast<int64_t>(chunks[end].total_bytes()));
    if (in_flight > Bytes(0) && in_flight + bytes > options_.max_in_flight) break;
    if (batch > Bytes(0) && batch + bytes > options_.max_batch) break;
    in_flight += bytes;
    batch += bytes;
    ++end;
  }
  return end;
}

void CopyLane::cancel_locked(const CopyJobPtr& job) {
  if (job->state() != CopyState::kQueued) return;
  if (job->held_) {
    job->cancel_requested_ = true;  // the thread that enqueues it will see, if it leaves anything
    return;
  }
  if (job->next_chunk_ == job->request_.chunks.size() && job->next_chunk_ > 0) return;  // only the event is missing
  job->failure_ = Failure{FailureCode::kCancelled, 0, "The copy was withdrawn before it began."};
  stop_locked(job);
  end_if_over_locked(job);
}

// REQUIRES: state kQueued, failure_ is set, not held.
void CopyLane::stop_locked(const CopyJobPtr& job) {
  CopyChunks& chunks = job->request_.chunks;
  stats_.queued -= Bytes(static_cast<int64_t>(total_bytes(chunks, job->next_chunk_)));
  chunks.shrink(job->next_chunk_);
  become_locked(*job, CopyState::kStopping);
  if (!job->has_work()) std::erase(queue_, job);
}

void CopyLane::end_if_over_locked(const CopyJobPtr& job) {
  if (job->batches_in_flight_ > 0 || job->unrecorded_bytes_ > 0) return;
  if (job->state() != CopyState::kStopping && job->state() != CopyState::kEnqueued) return;
  if (!job->failure_) {
    become_locked(*job, CopyState::kPassed);
  } else if (job->failure_->code == FailureCode::kCancelled) {
    ++stats_.cancelled;
    become_locked(*job, CopyState::kCancelled);
  } else {
    ++stats_.failed;
    become_locked(*job, CopyState::kFailed);
  }
  ended_.push_back(job);
}

void CopyLane::become_locked(CopyJob& job, CopyState state) {
  assert(may_become(job.state(), state));
  job.state_.store(state, std::memory_order_release);
}

void CopyLane::count_in_flight_locked(int64_t bytes) {
  stats_.in_flight += Bytes(bytes);
  if (options_.link) (direction_ == Direction::kOut ? options_.link->out_bytes : options_.link->in_bytes) += bytes;
}

bool CopyLane::opposite_busy() const noexcept {
  return options_.link && (direction_ == Direction::kOut ? options_.link->in_bytes : options_.link->out_bytes) > 0;
}

// Timing costs two events more, so of small batches only some are timed. Copies enqueued earlier that still await an event
// would be counted in, though they ran before.
bool CopyLane::wants_timing_locked(const CopyJob& job) noexcept {
  constexpr int kTimedOneIn = 8;
  if (!times_ || job.unrecorded_bytes_ > 0) return false;
  return job.bytes_ >= kAlwaysTimed || batches_[Bandwidth::size_class(job.bytes_)]++ % kTimedOneIn == 0;
}

// The caller may be far ahead of the device: what is enqueued the other way does not run yet, so events tell.
std::optional<CopyLane::Timed> CopyLane::time_of(const EventPtr& from, const EventPtr& to) {
  const Result<double> seconds = device_.seconds_between(from, to);
  if (!seconds.ok()) return std::nullopt;
  if (!options_.link) return Timed{seconds.value(), LinkUse::kAlone};
  return Timed{seconds.value(), options_.link->use_of(device_, direction_, {from, to})};
}

// Without timed events: wall time, as far as polling shows it: from when the batch could start (enqueued, and the one
// before it seen to have passed) to when it was seen to have passed. Left out of the speed are batches that nobody looked
// at near their end, and those with traffic the other way for a part of the time.
void CopyLane::measure_locked(const Batch& batch, Time end, const std::optional<Timed>& timed) {
  const LinkUse seen = batch.duplex ? LinkUse::kDuplex : LinkUse::kAlone;
  if (timed) {
    stats_.busy_s += timed->seconds;
    if (timed->use) bandwidth_.add(batch.job->bytes_, batch.bytes, timed->seconds, *timed->use);
  } else if (times_) {
    const auto speed = bandwidth_.bytes_per_second(batch.job->bytes_, seen);
    if (speed) stats_.busy_s += static_cast<double>(batch.bytes.count()) / *speed;
  } else {
    const Time begin = std::max(batch.begin, last_end_);
    const double seconds = std::chrono::duration<double>(end - begin).count();
    stats_.busy_s += seconds;
    if (opposite_busy() != batch.duplex || (end - batch.last_pending) * 8 > end - begin) return;
    bandwidth_.add(batch.job->bytes_, batch.bytes, seconds, seen);
  }
}

}  // namespace ebbtide
