#include <ebbtide/transfer/copy_lane.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "tests/support/chaos_device.h"
#include "tests/support/fake_clock.h"

namespace ebbtide {
namespace {

using test::ChaosDevice;
using test::FakeClock;
using test::Pace;
using testing::ElementsAre;
using testing::IsEmpty;
using namespace std::chrono_literals;

constexpr size_t kChunk = 1024;
const Failure kBroken{FailureCode::kDeviceLost, 5, "The copy engine is on fire."};
const Failure kNoEvent{FailureCode::kOverCapacity, 0, "No event to be had."};

/// On a lazy device nothing passes before device_.run_all(): what is in flight is the test's to say.
class CopyLaneTest : public testing::Test {
 protected:
  ~CopyLaneTest() override {
    device_.run_all();
    lane_.close();
    lane_.pump();
    EXPECT_TRUE(lane_.idle());
    EXPECT_THAT(device_.races(), IsEmpty());
    EXPECT_THAT(device_.misuse(), IsEmpty());
  }

  /// A job that brings `chunks` chunks in, each with its own number as bytes; `done` is noted as "NAME ok" or "NAME
  /// CODE".
  CopyRequest request(const std::string& name, int chunks, Urgency urgency = Urgency::kQueued) {
    struct Memory {
      std::vector<std::byte> host;
      std::shared_ptr<std::byte> device;
    };
    auto memory = std::make_shared<Memory>();
    const size_t bytes = static_cast<size_t>(chunks) * kChunk;
    memory->host.assign(bytes, std::byte(chunks));
    memory->device = device_.allocate(bytes, compute_, name).value();
    CopyRequest request{.after = device_.record(compute_).value(), .keepalive = memory, .urgency = urgency};
    for (size_t at = 0; at < bytes; at += kChunk)
      request.chunks.push_back({memory->device.get() + at, memory->host.data() + at, kChunk});
    request.done = [this, name](const Status& status) {
      done_.push_back(name + (status.ok()                                        ? " ok"
                              : status.failure().code == FailureCode::kCancelled ? " cancelled"
                                                                                 : " failed"));
    };
    return request;
  }
  CopyJobPtr submit(const std::string& name, int chunks, Urgency urgency = Urgency::kQueued) {
    return lane_.submit(request(name, chunks, urgency));
  }
  void let_pass() {
    device_.run_all();
    lane_.pump();
  }
  int64_t chunks_in_flight() const { return lane_.stats().in_flight.count() / static_cast<int64_t>(kChunk); }

  ChaosDevice device_{{.pace = Pace::kLazy}};
  StreamId compute_ = device_.make_stream("compute");
  FakeClock clock_;
  std::shared_ptr<LinkLoad> link_ = std::make_shared<LinkLoad>();
  CopyLane lane_{device_, clock_, Direction::kIn, {.max_in_flight = Bytes(4 * kChunk), .link = link_}};
  std::vector<std::string> done_;
};

TEST_F(CopyLaneTest, AJobGoesFromSubmitToDone) {
  auto memory = device_.allocate(kChunk, compute_, "x").value();
  std::vector<std::byte> host(kChunk, std::byte{7});
  const EventPtr after = device_.record(compute_).value();
  const std::weak_ptr<std::byte> alive = memory;
  bool alive_in_done = false;
  const CopyJobPtr job = lane_.submit({.chunks = {{memory.get(), host.data(), kChunk}},
                                       .after = after,
                                       .keepalive = memory,
                                       .done = [&](const Status& status) {
                                         EXPECT_TRUE(status);
                                         alive_in_done = !alive.expired();
                                       }});
  EXPECT_EQ(job->state(), CopyState::kEnqueued);
  EXPECT_EQ(lane_.stats().in_flight, Bytes(kChunk));
  EXPECT_EQ(link_->in_bytes, static_cast<int64_t>(kChunk));
  EXPECT_FALSE(lane_.idle());
  std::byte* const where = memory.get();
  memory.reset();
  lane_.pump();
  EXPECT_FALSE(alive.expired()) << "a copy may still touch it";
  device_.run_all();
  EXPECT_EQ(where[kChunk - 1], std::byte{7});
  lane_.pump();
  EXPECT_EQ(job->state(), CopyState::kPassed);
  EXPECT_TRUE(alive_in_done);
  EXPECT_TRUE(alive.expired());
  EXPECT_EQ(lane_.stats().copied, Bytes(kChunk));
  EXPECT_EQ(link_->in_bytes, 0);
  EXPECT_TRUE(lane_.idle());
}

TEST_F(CopyLaneTest, JobsThatDoNotFitWaitTheirTurn) {
  const CopyJobPtr a = submit("a", 3), b = submit("b", 2), c = submit("c", 1);
  EXPECT_NE(a->event(), nullptr);
  EXPECT_EQ(b->event(), nullptr) << "one chunk of it fits, the other not";
  EXPECT_EQ(c->event(), nullptr) << "it would fit, but it is not its turn";
  EXPECT_EQ(chunks_in_flight(), 4);
  EXPECT_EQ(lane_.stats().queued, Bytes(2 * kChunk));
  let_pass();
  EXPECT_NE(b->event(), nullptr);
  EXPECT_NE(c->event(), nullptr);
  EXPECT_THAT(done_, ElementsAre("a ok"));
  let_pass();
  EXPECT_THAT(done_, ElementsAre("a ok", "b ok", "c ok"));
}

TEST_F(CopyLaneTest, AJobThatIsPartlyEnqueuedKeepsItsTurn) {
  submit("a", 3);
  submit("b", 9);
  submit("c", 1);
  for (int i = 0; i < 4; ++i) let_pass();
  EXPECT_THAT(done_, ElementsAre("a ok", "b ok", "c ok"));
}

TEST_F(CopyLaneTest, AJobLargerThanTheCapGoesInPieces) {
  const CopyJobPtr job = submit("large", 10);
  for (int expected : {4, 4, 2}) {
    EXPECT_EQ(chunks_in_flight(), expected);
    EXPECT_EQ(job->event() != nullptr, expected == 2);
    let_pass();
  }
  EXPECT_THAT(done_, ElementsAre("large ok"));
}

TEST_F(CopyLaneTest, AChunkLargerThanTheCapGoesAlone) {
  CopyRequest large = request("large", 6);
  large.chunks = {{large.chunks[0].to, large.chunks[0].from, 6 * kChunk}};
  const CopyJobPtr small = submit("small", 1), job = lane_.submit(std::move(large));
  EXPECT_EQ(job->event(), nullptr);
  let_pass();
  EXPECT_EQ(chunks_in_flight(), 6);
  let_pass();
  EXPECT_THAT(done_, ElementsAre("small ok", "large ok"));
}

TEST_F(CopyLaneTest, ASubmittedDemandOvertakesAndExceedsTheCap) {
  submit("first", 4);
  const CopyJobPtr queued = submit("queued", 1), needed = submit("needed", 3, Urgency::kDemand);
  EXPECT_NE(needed->event(), nullptr);
  EXPECT_EQ(queued->event(), nullptr);
  EXPECT_EQ(chunks_in_flight(), 7);
  let_pass();
  let_pass();
  EXPECT_THAT(done_, ElementsAre("first ok", "needed ok", "queued ok"));
}

TEST_F(CopyLaneTest, DemandTakesAJobOutOfTheQueue) {
  submit("first", 4);
  const CopyJobPtr queued = submit("queued", 1), needed = submit("needed", 2);
  const Result<EventPtr> event = lane_.demand(needed);
  ASSERT_TRUE(event);
  EXPECT_EQ(event.value(), needed->event());
  EXPECT_EQ(queued->event(), nullptr);
  EXPECT_EQ(lane_.demand(needed).value(), event.value()) << "asking again costs nothing";
  EXPECT_EQ(lane_.stats().demands, 1);
  let_pass();
  EXPECT_EQ(lane_.demand(needed).value(), event.value()) << "also after it has passed";
  let_pass();
  EXPECT_THAT(done_, ElementsAre("first ok", "needed ok", "queued ok"));
}

TEST_F(CopyLaneTest, DemandFinishesAJobThatIsPartlyEnqueued) {
  const CopyJobPtr job = submit("job", 7);
  EXPECT_EQ(chunks_in_flight(), 4);
  ASSERT_TRUE(lane_.demand(job));
  EXPECT_EQ(chunks_in_flight(), 7);
  let_pass();
  EXPECT_THAT(done_, ElementsAre("job ok"));
}

TEST_F(CopyLaneTest, AJobWithoutBytesStillHasAnEvent) {
  const CopyJobPtr job = lane_.submit({.after = device_.record(compute_).value()});
  EXPECT_NE(job->event(), nullptr);
  EXPECT_FALSE(device_.passed(job->event()).value());
  let_pass();
  EXPECT_EQ(job->state(), CopyState::kPassed);
}

TEST_F(CopyLaneTest, RowsAreOneChunkOfTheirBytes) {
  constexpr size_t kRow = kChunk / 2, kPitch = kChunk, kRows = 4;
  const auto memory = device_.allocate(kPitch * kRows, compute_, "strided").value();
  std::vector<std::byte> host(kRow * kRows);
  for (size_t i = 0; i < host.size(); ++i) host[i] = std::byte(i / kRow + 1);
  CopyRequest rows{.after = device_.record(compute_).value()};
  rows.chunks.push_back({memory.get(), host.data(), kRow, kRows, kPitch, kRow});
  const CopyJobPtr job = lane_.submit(std::move(rows));
  EXPECT_EQ(lane_.stats().in_flight, Bytes(kRow * kRows));
  let_pass();
  EXPECT_EQ(job->state(), CopyState::kPassed);
  EXPECT_EQ(lane_.stats().copied, Bytes(kRow * kRows));
  for (size_t row = 0; row < kRows; ++row) {
    EXPECT_EQ(memory.get()[row * kPitch + kRow - 1], std::byte(row + 1));
    EXPECT_EQ(memory.get()[row * kPitch + kRow], ChaosDevice::kPoison) << "the gap";
  }
  EXPECT_TRUE(device_.wait(compute_, job->event()));  // which frees the memory
}

TEST_F(CopyLaneTest, CancelWithdrawsAQueuedJobAtOnce) {
  submit("first", 4);
  const CopyJobPtr queued = submit("queued", 1);
  lane_.cancel(queued);
  EXPECT_THAT(done_, ElementsAre("queued cancelled"));
  EXPECT_EQ(queued->failure().code, FailureCode::kCancelled);
  EXPECT_EQ(lane_.demand(queued).failure().code, FailureCode::kCancelled);
  EXPECT_EQ(lane_.stats().queued, Bytes(0));
  lane_.cancel(queued);
  let_pass();
  EXPECT_THAT(done_, ElementsAre("queued cancelled", "first ok"));
}

TEST_F(CopyLaneTest, CancelOfAPartlyEnqueuedJobWaitsForWhatIsInFlight) {
  CopyRequest large = request("large", 6);
  const std::weak_ptr<void> alive = large.keepalive;
  const CopyJobPtr job = lane_.submit(std::move(large));
  lane_.cancel(job);
  EXPECT_EQ(job->state(), CopyState::kStopping);
  EXPECT_THAT(done_, IsEmpty());
  EXPECT_FALSE(alive.expired());
  EXPECT_EQ(lane_.demand(job).failure().code, FailureCode::kCancelled);
  let_pass();
  EXPECT_THAT(done_, ElementsAre("large cancelled"));
  EXPECT_TRUE(alive.expired());
}

TEST_F(CopyLaneTest, IsNotIdleInsideADone) {
  device_.fail(ChaosDevice::Call::kWait, 0, kBroken);
  bool idle = true;
  lane_.submit({.after = device_.record(compute_).value(), .urgency = Urgency::kDemand, .done = [&](const Status&) {
                  idle = lane_.idle();
                }});
  EXPECT_FALSE(idle);
  EXPECT_TRUE(lane_.idle());
}

TEST_F(CopyLaneTest, CancelIsTooLateOnceAllIsEnqueued) {
  const CopyJobPtr job = submit("job", 1);
  lane_.cancel(job);
  let_pass();
  EXPECT_THAT(done_, ElementsAre("job ok"));
}

TEST_F(CopyLaneTest, AFailedWaitFailsTheJobBeforeAnyCopy) {
  device_.fail(ChaosDevice::Call::kWait, 0, kBroken);
  const CopyJobPtr job = submit("job", 2);
  EXPECT_THAT(done_, ElementsAre("job failed"));
  EXPECT_EQ(job->state(), CopyState::kFailed);
  EXPECT_EQ(job->failure().message, kBroken.message);
  EXPECT_EQ(job->event(), nullptr);
  EXPECT_EQ(chunks_in_flight(), 0);
  EXPECT_EQ(lane_.stats().failed, 1);
}

TEST_F(CopyLaneTest, AFailedCopyFailsTheJobWhenThoseBeforeItHavePassed) {
  device_.fail(ChaosDevice::Call::kCopy, 2, kBroken);
  CopyRequest three = request("three", 3);
  const std::weak_ptr<void> alive = three.keepalive;
  const CopyJobPtr job = lane_.submit(std::move(three)), next = submit("next", 1);
  EXPECT_EQ(job->state(), CopyState::kStopping);
  EXPECT_EQ(lane_.demand(job).failure().message, kBroken.message);
  EXPECT_FALSE(alive.expired()) << "two copies are in flight";
  EXPECT_EQ(chunks_in_flight(), 3) << "two of the failed job, one of the next";
  let_pass();
  EXPECT_THAT(done_, ElementsAre("three failed", "next ok"));
  EXPECT_TRUE(alive.expired());
}

TEST_F(CopyLaneTest, WithoutAnEventAJobGoesOnLater) {
  device_.fail(ChaosDevice::Call::kRecord, 1, kNoEvent);  // the first is the test's own
  const CopyJobPtr job = submit("job", 2), next = submit("next", 1);
  EXPECT_NE(job->event(), nullptr) << "the second submit pumped";
  EXPECT_NE(next->event(), nullptr);
  const CopyJobPtr needed = submit("needed", 2);
  device_.fail(ChaosDevice::Call::kRecord, 0, kNoEvent);
  EXPECT_EQ(lane_.demand(needed).failure().code, FailureCode::kOverCapacity);
  EXPECT_EQ(needed->event(), nullptr);
  EXPECT_EQ(chunks_in_flight(), 5) << "its copies run all the same";
  EXPECT_TRUE(lane_.demand(needed));
  let_pass();
  EXPECT_THAT(done_, ElementsAre("job ok", "next ok", "needed ok"));
}

TEST_F(CopyLaneTest, CancelWithoutAnEventKeepsTheMemoryUntilOneCanBeHad) {
  CopyRequest large = request("large", 6);
  const std::weak_ptr<void> alive = large.keepalive;
  device_.fail(ChaosDevice::Call::kRecord, 0, kNoEvent);
  const CopyJobPtr job = lane_.submit(std::move(large));
  lane_.cancel(job);
  device_.run_all();  // four copies are over, but nobody can know
  EXPECT_EQ(job->state(), CopyState::kStopping);
  EXPECT_FALSE(alive.expired());
  lane_.pump();
  let_pass();
  EXPECT_THAT(done_, ElementsAre("large cancelled"));
}

TEST_F(CopyLaneTest, ADeviceThatIsLostBeforeTheEventEndsTheJob) {
  device_.fail(ChaosDevice::Call::kRecord, 1, kBroken);
  const CopyJobPtr job = submit("job", 2);
  EXPECT_EQ(job->state(), CopyState::kFailed);
  EXPECT_EQ(job->failure().message, kBroken.message);
  EXPECT_EQ(chunks_in_flight(), 0);
  EXPECT_THAT(done_, ElementsAre("job failed"));
}

/// Failures of one call, as transfer/device.h has it: the copies go on.
constexpr FailureCode kOfOneCall[] = {FailureCode::kOverCapacity, FailureCode::kInvalid, FailureCode::kUnsupported};

TEST_F(CopyLaneTest, AnEventThatCannotBeLookedAtNowKeepsItsMemory) {
  for (const FailureCode code : kOfOneCall) {
    done_.clear();
    CopyRequest two = request("two", 2);
    const std::weak_ptr<void> alive = two.keepalive;
    const CopyJobPtr job = lane_.submit(std::move(two));
    device_.fail(ChaosDevice::Call::kPassed, 0, {code, 0, "Not now."});
    lane_.pump();
    EXPECT_EQ(job->state(), CopyState::kEnqueued) << "its copies are running";
    EXPECT_FALSE(alive.expired());
    let_pass();
    EXPECT_THAT(done_, ElementsAre("two ok"));
  }
}

TEST_F(CopyLaneTest, AnEventThatCannotBeMadeNowKeepsItsMemory) {
  for (const FailureCode code : kOfOneCall) {
    done_.clear();
    CopyRequest two = request("two", 2);
    const std::weak_ptr<void> alive = two.keepalive;
    device_.fail(ChaosDevice::Call::kRecord, 0, {code, 0, "Not now."});
    const CopyJobPtr job = lane_.submit(std::move(two));
    EXPECT_EQ(job->state(), CopyState::kQueued);
    EXPECT_EQ(chunks_in_flight(), 2);
    EXPECT_FALSE(alive.expired());
    EXPECT_TRUE(lane_.demand(job));
    let_pass();
    EXPECT_THAT(done_, ElementsAre("two ok"));
  }
}

TEST_F(CopyLaneTest, ALostDeviceEndsEverything) {
  const CopyJobPtr first = submit("first", 3), partly = submit("partly", 3), queued = submit("queued", 1);
  device_.lose(kBroken);
  lane_.pump();
  EXPECT_THAT(done_, ElementsAre("first failed", "partly failed", "queued failed"));
  EXPECT_EQ(first->failure().message, kBroken.message);
  EXPECT_FALSE(lane_.demand(first));
  EXPECT_EQ(lane_.stats().failed, 3);
  EXPECT_TRUE(lane_.idle());
}

TEST_F(CopyLaneTest, DoneMayCallTheLane) {
  CopyRequest first = request("first", 1);
  CopyRequest second = request("second", 1);
  first.done = [&](const Status&) {
    EXPECT_FALSE(lane_.idle());
    EXPECT_NE(lane_.submit(std::move(second)), nullptr);
  };
  lane_.submit(std::move(first));
  let_pass();
  EXPECT_EQ(chunks_in_flight(), 1) << "the same pump fed it";
  let_pass();
  EXPECT_THAT(done_, ElementsAre("second ok"));
}

TEST_F(CopyLaneTest, CloseCancelsTheQueueAndRefuses) {
  submit("first", 4);
  submit("queued", 1);
  lane_.close();
  EXPECT_THAT(done_, ElementsAre("queued cancelled"));
  EXPECT_EQ(submit("late", 1)->state(), CopyState::kCancelled);
  EXPECT_EQ(submit("late demand", 1, Urgency::kDemand)->state(), CopyState::kCancelled);
  EXPECT_FALSE(lane_.idle());
  let_pass();
  EXPECT_THAT(done_, ElementsAre("queued cancelled", "late cancelled", "late demand cancelled", "first ok"));
  EXPECT_TRUE(lane_.idle());
}

TEST_F(CopyLaneTest, MeasuresWhatItSawEnd) {
  submit("job", 1);
  clock_.advance(95ms);
  lane_.pump();  // still running
  clock_.advance(5ms);
  let_pass();
  EXPECT_DOUBLE_EQ(*lane_.bandwidth().bytes_per_second(Bytes(kChunk), LinkUse::kAlone), kChunk / 0.1);
}

TEST_F(CopyLaneTest, StartsFromWhatWasMeasuredBefore) {
  Bandwidth before;
  before.add(Bytes(kChunk), 0.5, LinkUse::kAlone);
  const CopyLane lane(device_, clock_, Direction::kOut, {.bandwidth = before});
  EXPECT_DOUBLE_EQ(*lane.bandwidth().bytes_per_second(Bytes(kChunk), LinkUse::kAlone), 2 * kChunk);
}

TEST_F(CopyLaneTest, DoesNotMeasureWhatNobodyLookedAt) {
  submit("job", 1);
  clock_.advance(1s);  // when did it end? nobody knows
  let_pass();
  EXPECT_FALSE(lane_.bandwidth().bytes_per_second(Bytes(kChunk), LinkUse::kAlone));
}

TEST_F(CopyLaneTest, TellsDuplexFromAloneAndLeavesOutMixtures) {
  link_->out_bytes = 1;
  submit("duplex", 1);
  clock_.advance(99ms);
  lane_.pump();
  clock_.advance(1ms);
  let_pass();
  submit("mixed", 1);
  link_->out_bytes = 0;
  clock_.advance(990ms);
  lane_.pump();
  clock_.advance(10ms);
  let_pass();
  submit("alone", 1);
  clock_.advance(198ms);
  lane_.pump();
  clock_.advance(2ms);
  let_pass();
  EXPECT_DOUBLE_EQ(*lane_.bandwidth().bytes_per_second(Bytes(kChunk), LinkUse::kDuplex), kChunk / 0.1);
  EXPECT_DOUBLE_EQ(*lane_.bandwidth().bytes_per_second(Bytes(kChunk), LinkUse::kAlone), kChunk / 0.2);
}

TEST(CopyLane, DestroyedUnderACopyItFreesNothing) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "leaks on purpose, which LeakSanitizer reports";
#endif
  ChaosDevice device({.pace = Pace::kLazy});
  SteadyClock clock;
  const StreamId compute = device.make_stream("compute");
  auto memory = device.allocate(kChunk, compute, "x").value();
  const std::weak_ptr<std::byte> alive = memory;
  std::vector<std::byte> host(kChunk);
  {
    CopyLane lane(device, clock, Direction::kIn);
    lane.submit({.chunks = {{memory.get(), host.data(), kChunk}}, .keepalive = std::move(memory)});
  }
  EXPECT_FALSE(alive.expired());
}

}  // namespace
}  // namespace ebbtide
