// When the steps of a pass ran on accelerators: its caller's clock knows only when they were asked for.
#pragma once

#include <ebbtide/pinned_pool/bytes.h>
#include <ebbtide/pinned_pool/export.h>
#include <ebbtide/transfer/device.h>
#include <ebbtide/transfer/device_clock.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

namespace ebbtide {

/// Of one pass, by timed events on the streams that it computes on, of one device or several. What these waited for
/// copies, and what they redid, is known apart. A wait of one of several counts only where it, and no other, has the next
/// step.
///
/// Threads: all methods from any.
/// Stream order: nothing is waited for; what is marked is where the stream is.
class EBBTIDE_API DeviceTimes {
 public:
  struct Place {
    std::shared_ptr<Device> device;
    std::shared_ptr<DeviceClock> clock;  ///< of that device; wanted once the pass is on several
    StreamId stream{};
  };
  explicit DeviceTimes(Place first) { places_.push_back(std::move(first)); }

  /// The pass computes there too.
  void add(Place place);
  bool of(const Device& device, StreamId stream) const;

  /// Whether each step is to be marked; else the first of each place and the end are.
  bool marks_steps() const noexcept { return marks_steps_.load(std::memory_order_relaxed); }
  void mark_steps(bool mark) noexcept { marks_steps_.store(mark, std::memory_order_relaxed); }

  /// A point on a stream.
  struct Point {
    const Device* device = nullptr;
    StreamId stream{};
    EventPtr event;  ///< null: not known

    bool same_stream(const Point& other) const noexcept { return device == other.device && stream == other.stream; }
  };
  /// Not known where the pass does not compute there; and, with no times to be known of this pass, where the device gives
  /// none.
  Point here(const Device& device, StreamId stream) noexcept;
  /// Step `step` of the pass's log is at that point, whether known or not.
  void step(size_t step, Point at);
  /// The stream did not compute from `begin` to `end`: it waited. Of no account where either is not known.
  void waited(Point begin, const Point& end);
  struct Redo {
    uint32_t record = 0;  ///< of the pass, by index
    const char* op = "";  ///< lives as long as the program
    Bytes bytes;          ///< 0: it made others' too
    double seconds = 0;   ///< without what it rests on
  };
  /// It made this record again, and between the two whatever that rests on. `seconds` is not known yet.
  void redo_began(const Redo& redo, Point at);
  void redo_ended(uint32_t record, const Point& at);
  /// The pass is over where its streams are now.
  void ended() noexcept;
  /// Nothing will be known of this pass.
  void spoil();

  struct Known {
    double seconds = 0;                            ///< from the first mark to the end, waits and redos too
    double compute_s = 0;                          ///< without them
    std::vector<std::pair<size_t, double>> steps;  ///< in seconds of compute; of each device they rise
    std::vector<Redo> redos;
    bool all_steps = false;  ///< that were told of, were marked
  };
  enum class State { kNotYet, kKnown, kNever };
  struct Answer {
    State state = State::kNotYet;
    Known known;
  };
  /// Never waits. kKnown is said once, and then kNotYet until it is spoilt. REQUIRES: ended() was called.
  Answer look();

 private:
  struct Step {
    size_t number = 0;
    Point at;
  };
  struct Away {
    Point begin;
    EventPtr end;
    std::optional<Redo> redo;  // none: a wait
  };
  struct Marks {
    std::vector<Step> steps;
    std::vector<Away> away;
    std::vector<Point> ends;
    bool gaps = false;  // some step was told of without its event
  };
  class TimeLine;
  std::optional<Known> measure(const Marks& marks) const;
  std::vector<Place> places() const;

  std::atomic<bool> marks_steps_{true};

  mutable std::mutex mutex_;  // not held while a device is asked
  std::vector<Place> places_;
  bool spoilt_ = false;
  bool measured_ = false;  // or being measured
  Marks marks_;
};

}  // namespace ebbtide
