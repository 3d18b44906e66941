// When the steps of a pass ran on an accelerator: its caller's clock knows only when they were asked for.
#pragma once

#include <ebbtide/pinned_pool/bytes.h>
#include <ebbtide/pinned_pool/export.h>
#include <ebbtide/transfer/device.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

namespace ebbtide {

/// Of one pass on one compute stream, by timed events on it. What the stream waited for copies, and what it redid, is
/// known apart.
///
/// Threads: all methods from any.
/// Stream order: nothing is waited for; what is marked is where the stream is.
class EBBTIDE_API DeviceTimes {
 public:
  DeviceTimes(std::shared_ptr<Device> device, StreamId stream) noexcept : device_(std::move(device)), stream_(stream) {}

  bool of(const Device& device, StreamId stream) const noexcept {
    return device_.get() == &device && stream_ == stream;
  }

  /// Whether each step is to be marked; else the first and the end are.
  bool marks_steps() const noexcept { return marks_steps_.load(std::memory_order_relaxed); }
  void mark_steps(bool mark) noexcept { marks_steps_.store(mark, std::memory_order_relaxed); }

  /// A point on the stream; null, and no times will be known of this pass, where `stream` is another or the device gives
  /// none.
  EventPtr here(StreamId stream) noexcept;
  /// Step `step` of the pass's log is at `event`, which is null where here() gave none.
  void step(size_t step, EventPtr event);
  /// The stream did not compute from `begin` to `end`: it waited.
  void waited(EventPtr begin, EventPtr end);
  struct Redo {
    uint32_t record = 0;  ///< of the pass, by index
    const char* op = "";  ///< lives as long as the program
    Bytes bytes;          ///< 0: it made others' too
    double seconds = 0;   ///< without what it rests on
  };
  /// It made this record again, and between the two whatever that rests on. `seconds` is not known yet.
  void redo_began(const Redo& redo, EventPtr event);
  void redo_ended(uint32_t record, EventPtr event);
  /// The pass is over. Null: it is not known where.
  void ended(EventPtr event);
  /// Nothing will be known of this pass.
  void spoil();

  struct Known {
    double seconds = 0;                            ///< from the first mark to the end, waits and redos too
    double compute_s = 0;                          ///< without them
    std::vector<std::pair<size_t, double>> steps;  ///< in seconds of compute
    std::vector<Redo> redos;
    bool all_steps = false;  ///< that were told of, were marked
  };
  enum class State { kNotYet, kKnown, kNever };
  struct Answer {
    State state = State::kNotYet;
    Known known;
  };
  /// Never waits. kKnown is said once. REQUIRES: ended() was called.
  Answer look();

 private:
  struct Away {
    EventPtr begin, end;
    std::optional<Redo> redo;  // none: a wait
  };
  struct Marks {
    std::vector<std::pair<size_t, EventPtr>> steps;
    std::vector<Away> away;
    bool gaps = false;  // some step was told of without its event
  };
  static Result<Known> measure(Device& device, const Marks& marks, const EventPtr& end);

  const std::shared_ptr<Device> device_;
  const StreamId stream_;
  std::atomic<bool> marks_steps_{true};

  std::mutex mutex_;  // not held while the device is asked
  bool spoilt_ = false;
  Marks marks_;
  EventPtr end_;
};

}  // namespace ebbtide
