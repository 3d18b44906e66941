// One direction of one device's link: what is copied next, how much at once, how fast.
//
// A tensor leaves (kOut). Record, block and job share what the copy touches; `tensor` is a slot that can be emptied:
//   EventPtr packed = device.record(compute).value();               // its producer has run before this
//   job = out.submit({.chunks = ..., .after = packed, .keepalive = block_and_tensor, .done = to_disk});
//   ...at a later pack:
//   out.pump();                                                     // calls to_disk(success) once the block holds it
//   if (EventPtr copied = job->event()) {                           // all enqueued, though it may not have run yet
//     device.wait(compute, copied);                                 // so whoever gets its memory comes after the copy
//     tensor.reset();
//   }
// and comes back (kIn):
//   allocate the destination on the compute stream;
//   EventPtr allocated = device.record(compute).value();            // its earlier owner has ended before this
//   job = in.submit({.chunks = ..., .after = allocated, .keepalive = block_and_destination});  // prefetch: in its turn
//   EventPtr here = in.demand(job).value();                         // unpack: now, before all that is queued
//   device.wait(compute, here);                                     // the block is free when the job is finished()
#pragma once

#include <ebbtide/pinned_pool/bytes.h>
#include <ebbtide/pinned_pool/result.h>
#include <ebbtide/transfer/bandwidth.h>
#include <ebbtide/transfer/block_cache.h>
#include <ebbtide/transfer/clock.h>
#include <ebbtide/transfer/copy_job.h>
#include <ebbtide/transfer/device.h>
#include <ebbtide/transfer/link_load.h>

#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <optional>

namespace ebbtide {


struct CopyLaneOptions {
  /// Copies enqueued and not seen to have passed, over all jobs. It bounds how long a demand waits behind prefetches. A
  /// single chunk larger than this goes alone.
  Bytes max_in_flight = MiB(64);
  /// Of these, enqueued in one go with an event behind: when one batch has passed and nobody has looked yet, the link
  /// goes on with the next. A single chunk larger than this is one all the same.
  Bytes max_batch = MiB(16);
  /// Shared by the two lanes of a device; null: this lane is alone on its link.
  std::shared_ptr<LinkLoad> link;
  /// What is known of this direction's speed: measured before (measure_link.h), or by another lane.
  Bandwidth bandwidth = {};
};

struct CopyLaneStats {
  Bytes queued;       ///< submitted, not enqueued
  Bytes in_flight;    ///< enqueued, not seen to have passed
  Bytes copied;       ///< passed, over the lane's life
  /// While copies ran: where the device times events by these, else as far as polling shows it.
  double busy_s = 0;
  int64_t jobs = 0;
  int64_t demands = 0;  ///< jobs that were not wholly enqueued when someone needed them
  int64_t cancelled = 0;
  int64_t failed = 0;
};

/// Queues copy jobs and feeds them, first come first served and chunk by chunk, to the device's copy stream of one
/// direction.
///
/// Threads:  all methods from any. Nothing waits for a stream; demand() may wait for another thread that is just
///           enqueuing the same job.
/// Locks:    the lane's is held across no device call, no callback, and no lock but that of its memory. Callers hold no
///           lock that their `done` callbacks take, for these run inside submit, demand, cancel, pump and close.
/// Lifetime: device and clock outlive the lane. To end: close(), pump() until idle(), destroy. Destroyed earlier, it
///           leaks what copies in flight touch, since memory freed under a copy would corrupt its next owner.
/// Errors:   each job's own, as a value: in done(), in CopyJob::failure() and from demand(). A failed job stops no
///           other.
class CopyLane {
 public:
  CopyLane(Device& device, const Clock& clock, Direction direction, CopyLaneOptions options = {});
  ~CopyLane();
  CopyLane(const CopyLane&) = delete;
  CopyLane& operator=(const CopyLane&) = delete;

  Direction direction() const noexcept { return direction_; }
  /// The stream that the copies run on: memory of other streams that is dropped early must be recorded on it.
  StreamId stream() const noexcept { return stream_; }

  /// Takes a job, and pumps; a demanded one is enqueued at once instead. Never null; errors appear in the job. A closed
  /// lane cancels it at once.
  CopyJobPtr submit(CopyRequest request);

  /// The job is needed now: enqueues what is left of it, past the queue and above the cap, and returns its event.
  /// Errors: the job's failure, kCancelled; where the device had no event to give, why not: the job, still kQueued, goes
  /// on (ask again).
  Result<EventPtr> demand(const CopyJobPtr& job);

  /// Withdraws the copies that are not enqueued yet. If there were any, the job ends as kCancelled as soon as those
  /// enqueued before have passed (at once, inside this call, if there were none); else it runs to its end.
  void cancel(const CopyJobPtr& job);

  /// Looks which copies have passed, enqueues what now fits, calls `done` of the jobs that ended. If another thread is
  /// pumping, returns at once.
  void pump();

  /// Cancels what is queued and refuses what comes later. Copies in flight go on; keep pumping until idle().
  void close();

  /// Nothing is queued, in flight, or being delivered.
  bool idle() const;

  CopyLaneStats stats() const;
  /// By the size of whole jobs, which is what a planner asks about, whatever they were cut into. Where the device times
  /// events: from when a job's copies could run to their end. Else as far as polling shows it, and then the time in which
  /// they waited for their producer counts too.
  Bandwidth bandwidth() const;

 private:
  using Lock = std::unique_lock<std::mutex>;
  using Time = std::chrono::nanoseconds;

  /// After warm-up, jobs come and go without a call of the heap.
  template <class T>
  using Queue = std::list<T, CachedAllocator<T>>;

  /// Copies enqueued in one go, with one event after them.
  struct Batch {
    CopyJobPtr job;
    EventPtr event;
    EventPtr timed_from;  // before the first copy; null: not timed
    Bytes bytes;
    Time begin;         // before the first copy was enqueued
    Time last_pending;  // the latest time at which they had surely not all passed, as far as the lane saw
    bool duplex = false;
  };

  // REQUIRES: `lock` is held; those that take it drop it around device calls and callbacks.
  void poll(Lock& lock);
  void feed(Lock& lock);
  std::optional<Failure> enqueue(Lock& lock, const CopyJobPtr& job, size_t chunks_end);
  void deliver(Lock& lock);

  size_t fitting_end_locked(const CopyJob& job) const;
  void cancel_locked(const CopyJobPtr& job);
  void stop_locked(const CopyJobPtr& job);
  void end_if_over_locked(const CopyJobPtr& job);
  void become_locked(CopyJob& job, CopyState state);
  void count_in_flight_locked(int64_t bytes);
  bool opposite_busy() const noexcept;
  bool wants_timing_locked(const CopyJob& job) noexcept;
  struct Timed {
    double seconds = 0;
    std::optional<LinkUse> use;  ///< none: partly this, partly that
  };
  std::optional<Timed> time_of(const EventPtr& from, const EventPtr& to);
  void measure_locked(const Batch& batch, Time end, const std::optional<Timed>& timed);

  Device& device_;
  const Clock& clock_;
  const Direction direction_;
  const StreamId stream_;
  const CopyLaneOptions options_;
  const CachedAllocator<CopyJob> job_memory_;

  mutable std::mutex mutex_;
  std::condition_variable released_;  // a job is no longer held
  // All below: guarded by mutex_.
  Queue<CopyJobPtr> queue_;
  Queue<Batch> in_flight_;
  Queue<CopyJobPtr> ended_;  // their `done` is still to be called
  int delivering_ = 0;       // threads inside `done`
  int enqueuing_ = 0;        // threads that hold a job
  bool pumping_ = false;
  bool closed_ = false;
  Time last_end_{0};  // when the last batch was seen to have passed
  CopyLaneStats stats_;
  Bandwidth bandwidth_;
  bool times_ = true;                                   // until the device says that it does not time events
  int64_t enqueues_ = 0;                                // so far
  std::array<uint8_t, Bandwidth::kClasses> batches_{};  // so far, to time some of each size
};

}  // namespace ebbtide
