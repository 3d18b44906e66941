// A pretend accelerator whose streams do what the rules of streams allow and no more, and that sees every missing wait.
#pragma once

#include <ebbtide/transfer/device.h>

#include "tests/support/race_detector.h"
#include "tests/support/vector_clock.h"
#include "tests/support/virtual_streams.h"

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace ebbtide::test {

struct ChaosOptions {
  uint64_t seed = 0;         ///< print it when a test fails: it replays the schedule
  std::optional<Pace> pace;  ///< none: each stream draws its own from the seed
  Bytes capacity = MiB(64);  ///< device memory, counted over live allocations
  /// Its StreamIds are above this: so that several devices share none.
  uint64_t streams_above = 0;
  /// False: all threads of the program count as one agent, ordered as they call (what orders them, a mutex or a queue,
  /// is for ThreadSanitizer to check). True: each is an agent of its own, and what orders them must be told with
  /// host_moment() and host_after(). AgentScope makes agents either way.
  bool separate_threads = false;
  /// False: nothing is computed, copied or poisoned; only the order of things is looked at, which is fast, and which
  /// harms nobody where memory goes too early.
  bool moves_bytes = true;
  /// An allocation is an operation on its stream, as with CUDA's stream-ordered allocator: another stream that touches
  /// the memory has to come after it, also where it had no owner before.
  bool orders_allocations = false;
  /// record_timed() works: each timed event that passes is ten microseconds after the one that passed before it.
  bool times_events = false;
};

/// Memory that an operation touches.
struct Span {
  const void* data = nullptr;
  size_t bytes = 0;
};

/// Everything that orders work is known to the detector: stream order, events waited for by streams, events seen to
/// have passed by a host agent, and moments handed from agent to agent. races() lists accesses that none of these
/// order.
///
/// Work is done late, at moments that the seed decides, on whichever thread happens to call; a copy is done in two
/// halves. Freed memory is poisoned by a task on the stream that it was allocated on (a free counts as a write there)
/// and handed out again at the next allocation of its size. An event that is asked about long enough passes.
///
/// Threads:  any; serialised by one mutex. With one thread, or threads that take turns, a seed replays exactly.
/// Lifetime: outlives its buffers and lanes; events may outlive it.
class ChaosDevice final : public Device {
 public:
  explicit ChaosDevice(ChaosOptions options = {});
  ~ChaosDevice() override;

  // Device
  bool is_host() const noexcept override { return false; }
  std::string name() const override { return "chaos"; }
  std::string pci_address() const override { return {}; }
  Result<DeviceMemory> memory() override;
  StreamId copy_stream(Direction direction) noexcept override;
  Result<bool> capturing(StreamId stream) override;
  Result<EventPtr> record(StreamId stream) override;
  Status wait(StreamId stream, const EventPtr& event) override;
  Result<bool> passed(const EventPtr& event) override;
  Status copy(void* to, const void* from, size_t bytes, Direction direction, StreamId stream) override;
  Status copy_rows(void* to, const void* from, const CopyRows& rows, Direction direction, StreamId stream) override;
  Status synchronize(const EventPtr& event) override;
  Result<EventPtr> record_timed(StreamId stream) override;
  Result<double> seconds_between(const EventPtr& begin, const EventPtr& end) override;
  Status register_host(void* data, size_t bytes) override;
  void unregister_host(void* data, size_t bytes) noexcept override;

  // What a framework does on a device.
  StreamId make_stream(const std::string& name);
  /// What is enqueued there still runs; a call that names the stream from now on is misuse. Memory that was allocated for
  /// it may be freed.
  void end_stream(StreamId stream);
  /// Memory for use on `stream`, freed there when the last reference dies. Contents: poison, or an earlier owner's.
  /// Errors: kOverCapacity.
  Result<std::shared_ptr<std::byte>> allocate(size_t bytes, StreamId stream, const std::string& name);
  /// Enqueues a computation. `work` runs once, some time, under the device's mutex: it must not call the device.
  Status launch(StreamId stream, const std::string& what, std::vector<Span> reads, std::vector<Span> writes,
                std::function<void()> work);

  // What host code and disks do. The accesses themselves are the caller's, right before or after.
  void host_read(const void* data, size_t bytes, const std::string& what);
  void host_write(const void* data, size_t bytes, const std::string& what);
  /// All that the calling agent has done so far, to be handed to another.
  VectorClock host_moment();
  /// What the calling agent does from now on is ordered after `moment`.
  void host_after(const VectorClock& moment);

  /// In its scope the calling thread acts as the agent of this name ("disk"), which no moment orders unless it is told
  /// so.
  class AgentScope {
   public:
    AgentScope(ChaosDevice& device, const std::string& name);
    ~AgentScope();
    AgentScope(const AgentScope&) = delete;
    AgentScope& operator=(const AgentScope&) = delete;

   private:
    ChaosDevice& device_;
    std::optional<size_t> outer_;
  };

  /// What a program is without one of its orders: in its scope the calling thread's waits put nothing in order, what it
  /// records is recorded nowhere, and looks and synchronize() find passed what nobody has looked at.
  class Omission {
   public:
    explicit Omission(ChaosDevice& device);
    ~Omission();
    Omission(const Omission&) = delete;
    Omission& operator=(const Omission&) = delete;

   private:
    ChaosDevice& device_;
  };
  /// An event that stands for `earlier` where it should stand for `meant`; null: for no point at all, as one that was
  /// never recorded. Null, too, where `meant` is.
  EventPtr misplaced(const EventPtr& meant, const EventPtr& earlier = nullptr);
  /// The end of what is enqueued on the stream, to be meant by misplaced(). Records nothing.
  EventPtr end_of(StreamId stream);
  /// The same question for orders that are no call: is the next operation on `stream` that touches memory ordered after
  /// `event`, or what the calling thread does now?
  void should_come_after(StreamId stream, const EventPtr& event);
  void should_have_passed(const EventPtr& event);
  /// Whether something was in no order that an omitted call, a misplaced event, or should_*() would have put it in: the
  /// next operation on the stream that touches memory was not after the last one before the event by another way, or the
  /// thread knew by no other way that this one had run. Whether both touch the same memory is not asked.
  bool missed_an_order() const;

  // Faults
  enum class Call { kRecord, kWait, kPassed, kCopy, kAllocate, kRegisterHost };
  /// After `skip` more calls of this kind, one fails so and has no effect. Where that means by Device's rules that the
  /// device is lost, it is.
  void fail(Call call, int skip, Failure failure);
  /// What was to fail, and has not yet, will not.
  void forget_faults();
  /// The device is lost: nothing runs on it any more, and all calls fail so.
  void lose(Failure failure);

  // What the test wants to know
  std::set<std::string> races() const;
  /// Calls that make no sense: foreign events, copies of memory that is not allocated, unregistering what was never
  /// registered.
  std::vector<std::string> misuse() const;
  Bytes live_bytes() const;
  Bytes peak_live_bytes() const;
  uint64_t schedule() const;
  /// Runs all that is enqueued. Behind the program's back: it puts nothing in order.
  void run_all();

  static constexpr std::byte kPoison{0xFF};

 private:
  Result<EventPtr> record(StreamId stream, const std::shared_ptr<double>& time);
  struct Memory;  // one allocation
  struct HostAgent {
    AgentId id{};
    std::string name;
    VectorClock clock;
    uint64_t steps = 0;
  };
  class PointEvent;

  AgentId agent(StreamId stream) const noexcept;
  AgentId next_agent_locked() { return AgentId{agents_++}; }
  StreamId add_stream_locked(const std::string& name);
  HostAgent& host_locked();
  std::optional<Failure> refuse_locked(Call call);
  std::optional<Failure> refuse_stream_locked(StreamId stream);
  Result<const PointEvent*> known_locked(const EventPtr& event);
  void see_locked(const PointEvent& event);
  void note_unseen_locked(const PointEvent& event);
  StreamPoint push_locked(StreamId stream, std::function<void()> work);
  Failure complain_locked(std::string what);
  bool allocated_locked(const void* data, size_t bytes) const;
  bool omits_locked() const { return omitting_.contains(std::this_thread::get_id()); }
  void note_locked(Span span, RaceDetector::Kind kind, const StreamPoint& point, const std::string& what);
  void host_access_locked(Span span, RaceDetector::Kind kind, const std::string& what);
  void free(Memory* memory) noexcept;

  const ChaosOptions options_;
  mutable std::mutex mutex_;
  // All below: guarded by mutex_.
  double now_ = 0;  // as timed events tell it
  VirtualStreams streams_;
  RaceDetector detector_;
  uint32_t agents_ = 0;
  std::map<AgentId, std::string> stream_names_;
  std::set<StreamId> ended_;
  std::deque<HostAgent> hosts_;               // the first is the program
  std::map<std::thread::id, size_t> acting_;  // which host agent a thread acts as
  std::array<StreamId, 2> copy_streams_{};
  std::map<std::pair<StreamId, size_t>, std::vector<Memory*>> free_;
  std::map<uintptr_t, std::unique_ptr<Memory>> memory_;
  std::map<uintptr_t, size_t> registered_;
  std::map<Call, std::pair<int, Failure>> faults_;
  std::set<std::thread::id> omitting_;
  std::map<AgentId, uint64_t> last_access_;  // of a stream: the ticket of its last task that touches memory
  // Waits left out since a stream's last access: which stream's accesses it would have come after, up to which.
  std::map<AgentId, std::vector<std::pair<AgentId, uint64_t>>> omitted_;
  bool missed_an_order_ = false;
  std::optional<Failure> lost_;
  std::vector<std::string> misuse_;
  size_t live_bytes_ = 0;
  size_t peak_live_bytes_ = 0;
};

}  // namespace ebbtide::test
