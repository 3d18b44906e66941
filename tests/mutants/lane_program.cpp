#include <ebbtide/transfer/copy_lane.h>
#include <ebbtide/transfer/cuda_device.h>
#include <ebbtide/transfer/measure_link.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <optional>
#include <random>
#include <utility>
#include <vector>

#include "tests/mutants/left_out.h"
#include "tests/mutants/programs.h"
#include "tests/mutants/world.h"
#include "tests/support/chaos_device.h"
#include "tests/support/fake_clock.h"
#include "tests/support/fake_cuda_api.h"
#include "tests/support/late_device.h"

namespace ebbtide::mutants {
namespace {

using test::ChaosDevice;
using test::ChaosOptions;

constexpr size_t kBytes = 4096;

/// What a copy touches: the end of it is the end of both.
struct Ends {
  std::shared_ptr<std::byte> block;   // host memory
  std::shared_ptr<std::byte> tensor;  // device memory
};

/// A device during whose copies another thread acts.
class Interrupted final : public test::LateDevice {
 public:
  Interrupted(std::shared_ptr<Device> device, std::function<void()> other)
      : LateDevice(std::move(device), /*seed=*/0, /*looks_in_100=*/100), other_(std::move(other)) {}
  Status copy(void* to, const void* from, size_t bytes, Direction direction, StreamId stream) override {
    other_();
    return LateDevice::copy(to, from, bytes, direction, stream);
  }

 private:
  const std::function<void()> other_;
};

class LaneProgram {
 public:
  LaneProgram(const std::string& left_out, uint64_t seed, bool through_cuda) : random_(seed) {
    const ChaosOptions chaos{.seed = seed, .moves_bytes = false, .orders_allocations = true};
    if (through_cuda) {
      driver_ = std::make_shared<test::FakeCudaApi>(std::vector<ChaosOptions>{chaos});
      chaos_ = std::shared_ptr<ChaosDevice>(driver_, &driver_->device());
      device_ = CudaDevice::open(driver_, 0).value();
    } else {
      chaos_ = std::make_shared<ChaosDevice>(chaos);
      device_ = chaos_;
    }
    // Whole, it would wait for the thread that it interrupts, which is this one.
    if (left_out == "lane.held") device_ = std::make_shared<Interrupted>(device_, [this] { want_what_is_held(); });
    world_.emplace(*chaos_, left_out, seed);
    compute_ = chaos_->make_stream("compute");
    open();
  }

  Outcome run() {
    for (int step = 0; step < 300; ++step) {
      act();
      forget_faults();
      if (chance(30)) pump();
    }
    jobs_.clear();
    close();
    Outcome outcome{world_->executed(), chaos_->races()};
    for (const std::string& misuse : driver_ ? driver_->misuse() : chaos_->misuse()) outcome.caught.insert(misuse);
    world_.reset();
    return outcome;
  }

 private:
  struct Job {
    CopyJobPtr job;
    CopyLane* lane = nullptr;
    std::shared_ptr<Ends> ends;  // null: forgotten, so that the lane alone holds them
  };

  bool chance(unsigned in_100) { return random_() % 100 < in_100; }

  void open() {
    out_ = std::make_unique<CopyLane>(*device_, clock_, Direction::kOut,
                                      CopyLaneOptions{.max_in_flight = Bytes(3 * kBytes)});
    in_ = std::make_unique<CopyLane>(*device_, clock_, Direction::kIn,
                                     CopyLaneOptions{.max_in_flight = Bytes(3 * kBytes)});
  }
  void pump() {
    clock_.advance(std::chrono::microseconds(10));
    out_->pump();
    in_->pump();
  }
  /// As a lane is to end, or (`early`) as it is not to.
  void close(bool early = false) {
    if (!early) {
      out_->close();
      in_->close();
      while (!out_->idle() || !in_->idle()) {
        chaos_->run_all();
        pump();
      }
    }
    in_.reset();
    out_.reset();
  }

  void act() {
    switch (random_() % 12) {
      case 0:
      case 1:
      case 2:
        return leave();
      case 3:
      case 4:
        return come();
      case 5:
        if (Job* job = some()) job->lane->cancel(job->job);
        return;
      case 6:
        if (Job* job = some()) (void)job->lane->demand(job->job);
        return;
      case 7:
        if (Job* job = some()) job->ends = nullptr;
        return;
      case 8:
        if (Job* job = some()) finish(*job);
        return;
      case 9:
        return stumble();
      case 10:
        if (chance(20)) {  // withdrawn when its copies are enqueued, and no event is
          leave(/*no_event=*/true);
          jobs_.back().ends = nullptr;
          jobs_.back().lane->cancel(jobs_.back().job);
        } else if (chance(10)) {
          if (chance(50)) leave(/*no_event=*/true);
          jobs_.clear();
          close(/*early=*/true);
          open();
        }
        return;
      default:
        if (jobs_.size() > 12) jobs_.erase(jobs_.begin());
    }
  }

  Job* some() { return jobs_.empty() ? nullptr : &jobs_[random_() % jobs_.size()]; }

  std::shared_ptr<Ends> make_ends() {
    memory_begins();
    if (free_.empty()) {
      blocks_.push_back(std::make_unique<std::byte[]>(kBytes));
      free_.push_back(blocks_.back().get());
    }
    std::byte* const block = free_.back();
    free_.pop_back();
    auto ends = std::make_shared<Ends>();
    ends->block = std::shared_ptr<std::byte>(block, [this](std::byte* freed) {
      memory_ends(freed, kBytes);
      free_.push_back(freed);
    });
    ends->tensor = chaos_->allocate(kBytes, compute_, "tensor").value();
    return ends;
  }

  /// `no_event`: the device has none for this job, as it turns out.
  void submit(CopyLane& lane, std::shared_ptr<Ends> ends, Direction direction, bool no_event = false) {
    CopyRequest request{.after = device_->record(compute_).value()};
    const size_t part = kBytes / (1 + random_() % 4);
    for (size_t at = 0; at < kBytes; at += part) {
      const size_t bytes = std::min(part, kBytes - at);
      if (direction == Direction::kOut)
        request.chunks.push_back({ends->block.get() + at, ends->tensor.get() + at, bytes});
      else
        request.chunks.push_back({ends->tensor.get() + at, ends->block.get() + at, bytes});
    }
    if (chance(10)) request.urgency = Urgency::kDemand;
    request.done = [held = std::weak_ptr<Ends>(ends)](const Status& status) {
      if (status.ok() && held.expired()) note_executed();  // its memory ended before it did
    };
    request.keepalive = ends;
    if (no_event) refuse_an_event();
    CopyJobPtr job = lane.submit(std::move(request));
    jobs_.push_back({std::move(job), &lane, chance(40) ? nullptr : std::move(ends)});
  }

  void forget_faults() {
    chaos_->forget_faults();
    if (driver_) driver_->forget_faults();
  }

  void refuse_an_event() {
    if (driver_)
      driver_->fail("event_record", 0, CudaResult::kOutOfMemory);
    else
      chaos_->fail(ChaosDevice::Call::kRecord, 0, {FailureCode::kOverCapacity, 0, "not now"});
  }

  void leave(bool no_event = false) {
    auto ends = make_ends();
    (void)chaos_->launch(compute_, "produce", {}, {{ends->tensor.get(), kBytes}}, {});
    submit(*out_, std::move(ends), Direction::kOut, no_event);
  }
  void come() {
    auto ends = make_ends();
    chaos_->host_write(ends->block.get(), kBytes, "program writes");
    submit(*in_, std::move(ends), Direction::kIn);
  }

  /// The owner takes what has come, or lets go of what has left.
  void finish(Job& job) {
    const EventPtr copied = job.job->event();
    if (!copied || !job.ends) return;
    if (job.lane == out_.get()) {
      if (chance(30)) {
        if (!device_->synchronize(copied).ok()) return;
        chaos_->host_read(job.ends->block.get(), kBytes, "program reads");
      } else if (job.job->finished()) {
        chaos_->host_read(job.ends->block.get(), kBytes, "program reads");
      }
    }
    if (!device_->wait(compute_, copied).ok()) return;
    if (job.lane == in_.get()) (void)chaos_->launch(compute_, "use", {{job.ends->tensor.get(), kBytes}}, {}, {});
    job.ends->tensor = nullptr;
  }

  /// An engine's thread needs a tensor whose copy another thread is just enqueuing.
  void want_what_is_held() {
    Job* const job = some();
    if (wanting_ || job == nullptr || job->lane != in_.get() || !job->ends) return;
    wanting_ = true;
    const ChaosDevice::AgentScope engine(*chaos_, "engine");
    if (const Result<EventPtr> here = in_->demand(job->job); here && here.value()) {
      if (world_->take_passed_over()) world_->note_executed();
      (void)device_->wait(compute_, here.value());
      (void)chaos_->launch(compute_, "use", {{job->ends->tensor.get(), kBytes}}, {}, {});
    }
    (void)world_->take_passed_over();
    wanting_ = false;
  }

  /// The device has no event, no room for a copy, or no answer now.
  void stumble() {
    if (driver_) {
      static constexpr const char* kFunctions[] = {"event_record", "event_query", "event_query",
                                                   "memcpy_device_to_host_async", "memcpy_host_to_device_async"};
      driver_->fail(kFunctions[random_() % std::size(kFunctions)], static_cast<int>(random_() % 2),
                    CudaResult::kOutOfMemory);
    } else {
      static constexpr ChaosDevice::Call kCalls[] = {ChaosDevice::Call::kRecord, ChaosDevice::Call::kRecord,
                                                     ChaosDevice::Call::kCopy, ChaosDevice::Call::kPassed};
      chaos_->fail(kCalls[random_() % std::size(kCalls)], static_cast<int>(random_() % 2),
                   {FailureCode::kOverCapacity, 0, "not now"});
    }
    Job* const job = some();
    if (job != nullptr && chance(50)) (void)job->lane->demand(job->job);
    pump();
    if (job != nullptr && chance(50)) job->lane->cancel(job->job);
    forget_faults();
  }

  std::mt19937_64 random_;
  std::shared_ptr<test::FakeCudaApi> driver_;
  std::shared_ptr<ChaosDevice> chaos_;
  std::shared_ptr<Device> device_;
  std::optional<World> world_;
  StreamId compute_{};
  test::FakeClock clock_;
  std::vector<std::unique_ptr<std::byte[]>> blocks_;
  std::vector<std::byte*> free_;
  std::unique_ptr<CopyLane> out_, in_;
  std::vector<Job> jobs_;
  bool wanting_ = false;
};

/// Memory of the host, whose end the detector is told of.
std::shared_ptr<std::byte> host_memory(size_t bytes) {
  return std::shared_ptr<std::byte>(new std::byte[bytes], [bytes](std::byte* freed) {
    memory_ends(freed, bytes);
    delete[] freed;
  });
}

}  // namespace

Outcome run_link(const std::string& left_out, uint64_t seed) {
  ChaosDevice device({.seed = seed, .moves_bytes = false, .orders_allocations = true});
  World world(device, left_out, seed);
  const SteadyClock clock;
  constexpr size_t kScratch = 64 << 10;
  const auto out = host_memory(kScratch), in = host_memory(kScratch);
  auto device_out = device.allocate(kScratch, device.copy_stream(Direction::kOut), "scratch").value();
  auto device_in = device.allocate(kScratch, device.copy_stream(Direction::kIn), "scratch").value();
  const auto measured = measure_link(device, clock, {out.get(), in.get(), device_out.get(), device_in.get(), kScratch});
  Outcome outcome;
  if (!measured) outcome.caught.insert(measured.failure().message);
  device.host_read(out.get(), kScratch, "program reads");
  device.host_write(in.get(), kScratch, "program writes");
  outcome.executed = world.executed();
  outcome.caught.merge(device.races());
  return outcome;
}

Outcome run_lanes(const std::string& program, const std::string& left_out, uint64_t seed) {
  return LaneProgram(left_out, seed, /*through_cuda=*/program == "cuda lanes").run();
}

}  // namespace ebbtide::mutants
