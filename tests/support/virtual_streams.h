// Streams of a machine that does not exist: queues of closures that an adversary runs at moments of its choice.
#pragma once

#include "tests/support/vector_clock.h"

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <optional>
#include <random>
#include <vector>

namespace ebbtide::test {

/// When a stream's tasks run: as soon as its waits allow; only when somebody must have the result; or in between, by
/// lot.
enum class Pace { kEager, kLazy, kRandom };

/// A point on a stream: the task counted `ticket` and all before it have run. `clock` says what else is ordered before
/// it.
struct StreamPoint {
  AgentId stream{};
  uint64_t ticket = 0;
  VectorClock clock;
};

/// In-order queues of tasks. Nothing runs by itself: tasks run inside turn() and drain(), so the schedule follows from
/// the seed and the calls made.
///
/// A stream is an agent, and a task one step of it. What a task is ordered after is known when it is enqueued, whenever
/// it may run.
///
/// Threads: one at a time. A task must not call back.
class VirtualStreams {
 public:
  /// Without a `pace`, each stream draws its own, and draws again now and then.
  explicit VirtualStreams(uint64_t seed, std::optional<Pace> pace = std::nullopt);

  void add(AgentId stream);
  bool has(AgentId stream) const noexcept;

  /// Enqueues a task that is ordered after all before it on the stream and after what `host` is ordered after. Returns
  /// the task's point.
  StreamPoint push(AgentId stream, const VectorClock& host, std::function<void()> work);
  /// What is enqueued on `stream` later runs after `point`.
  void wait(AgentId stream, const VectorClock& host, const StreamPoint& point);
  StreamPoint last(AgentId stream) const;

  bool passed(const StreamPoint& point) const;
  /// Runs what must have run for `point` to pass (and whatever else the adversary likes).
  void drain(const StreamPoint& point);
  void drain_all();
  /// The adversary's move.
  void turn();

  /// A fingerprint of the order in which tasks ran so far.
  uint64_t schedule() const noexcept { return schedule_; }

 private:
  struct Task {
    std::function<void()> work;        // empty in a wait
    std::optional<StreamPoint> after;  // a wait for this
  };
  struct Stream {
    AgentId agent{};
    std::deque<Task> tasks;
    uint64_t pushed = 0;
    uint64_t done = 0;
    VectorClock clock;
    Pace pace = Pace::kEager;
    unsigned chance = 0;  // of kRandom, in percent
  };

  Stream& stream(AgentId agent);
  const Stream& stream(AgentId agent) const;
  StreamPoint push(AgentId agent, const VectorClock& host, Task task);
  bool ready(const Stream& stream) const;
  void run_front(Stream& stream);
  void draw_pace(Stream& stream);

  std::mt19937_64 random_;
  const std::optional<Pace> pace_;
  std::deque<Stream> streams_;
  uint64_t schedule_ = 0xcbf29ce484222325;  // FNV-1a
};

}  // namespace ebbtide::test
