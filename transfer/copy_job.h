// One record's way across a link: its copies, what they wait for, and how far they have come.
#pragma once

#include <ebbtide/pinned_pool/bytes.h>
#include <ebbtide/pinned_pool/result.h>
#include <ebbtide/transfer/copy_chunks.h>
#include <ebbtide/transfer/device.h>

#include <atomic>
#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <utility>

namespace ebbtide {

enum class Urgency {
  kQueued,  ///< when its turn comes and the lane's cap leaves room
  kDemand,  ///< at once, before all that is queued, even above the cap
};

struct CopyRequest {
  CopyChunks chunks;
  /// The copies run after this event; null: at once.
  EventPtr after;
  /// What must not be freed while a copy may touch it. The lane lets go of it after `done` has returned, on that same
  /// thread (`done` may keep a reference of its own, where the last one must die elsewhere).
  std::shared_ptr<void> keepalive;
  Urgency urgency = Urgency::kQueued;
  /// Called exactly once, when no copy of the job touches its memory any more: success, kCancelled, or the device's
  /// failure. On the thread that calls into the lane, with no lock held; it may call into the lane, and must not throw.
  /// May be empty.
  std::function<void(const Status&)> done;
};

enum class CopyState {
  kQueued,     ///< some copies are not enqueued yet
  kStopping,   ///< cancelled or failed; copies enqueued before are still running
  kEnqueued,   ///< all copies are enqueued: event() is known
  kPassed,     ///< all bytes are there
  kFailed,     ///< failure() says why; the destination's bytes are unspecified
  kCancelled,  ///< the destination's bytes are unspecified
};
inline constexpr int kCopyStates = 6;

/// The table of transitions: may a job in state `from` go to `to`?
constexpr bool may_become(CopyState from, CopyState to) noexcept {
  using enum CopyState;
  switch (from) {
    case kQueued:
      return to == kStopping || to == kEnqueued || to == kFailed || to == kCancelled;
    case kStopping:
      return to == kFailed || to == kCancelled;
    case kEnqueued:
      return to == kPassed || to == kFailed;
    case kPassed:
    case kFailed:
    case kCancelled:
      return false;
  }
  return false;
}

/// Threads: all methods from any. Lifetime: shared by the lane (until done) and whoever asked; may outlive the lane.
class CopyJob {
  class ByLane {};  // only a lane makes jobs

 public:
  CopyJob(ByLane, CopyRequest request) : request_(std::move(request)) {}

  CopyState state() const noexcept { return state_.load(std::memory_order_acquire); }
  /// No copy of this job touches memory any more.
  bool finished() const noexcept { return state() >= CopyState::kPassed; }
  /// A point after the job's last copy; null until all copies are enqueued, and for a job that was cancelled or failed
  /// before. What streams do after waiting for it, and what a thread does after `Device::passed(event)`, is ordered
  /// after the copies.
  EventPtr event() const { return state() >= CopyState::kEnqueued ? event_ : nullptr; }
  /// REQUIRES: state() is kFailed or kCancelled.
  const Failure& failure() const noexcept { return *failure_; }

 private:
  friend class CopyLane;

  /// The lane still has something to enqueue: copies, or the event after them.
  bool has_work() const noexcept {
    return state() == CopyState::kQueued || (state() == CopyState::kStopping && unrecorded_bytes_ > 0);
  }

  // Written before the state that announces them, never after.
  EventPtr event_;
  std::optional<Failure> failure_;
  std::atomic<CopyState> state_{CopyState::kQueued};

  // Guarded by the lane's mutex, but for request_, which belongs to the thread that holds the job, and at the end to
  // the one that delivers it.
  CopyRequest request_;
  Bytes bytes_;                  // of all its chunks
  size_t next_chunk_ = 0;        // the first chunk that is not enqueued yet
  size_t unrecorded_bytes_ = 0;  // enqueued, but the device had no event to put after them
  int batches_in_flight_ = 0;
  bool held_ = false;  // a thread is enqueuing it
  bool cancel_requested_ = false;
};
using CopyJobPtr = std::shared_ptr<CopyJob>;

}  // namespace ebbtide
