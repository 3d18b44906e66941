// What a lane makes of CudaDevice's answers.
#include <ebbtide/transfer/copy_lane.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "tests/support/device_rig.h"
#include "tests/support/fake_clock.h"

namespace ebbtide::test {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

constexpr size_t kChunk = 4096;

/// On a lazy device nothing passes before let_pass().
class CopyLaneOnCuda : public testing::Test {
 protected:
  ~CopyLaneOnCuda() override {
    rig_.finish();
    lane_.close();
    lane_.pump();
    EXPECT_TRUE(lane_.idle());
    rig_.expect_clean();
  }

  CopyJobPtr submit(const std::string& name, size_t chunks, Urgency urgency = Urgency::kQueued) {
    struct Memory {
      std::shared_ptr<std::byte> host, device;
    };
    const size_t bytes = chunks * kChunk;
    auto memory = std::make_shared<Memory>(Memory{rig_.host(bytes), rig_.allocate(bytes, compute_)});
    CopyRequest request{.after = rig_.device().record(compute_).value(), .keepalive = memory, .urgency = urgency};
    alive_ = memory;
    for (size_t at = 0; at < bytes; at += kChunk)
      request.chunks.push_back({memory->device.get() + at, memory->host.get() + at, kChunk});
    request.done = [this, name](const Status& status) {
      done_.push_back(name + (status.ok()                                        ? " ok"
                              : status.failure().code == FailureCode::kCancelled ? " cancelled"
                                                                                 : " failed"));
    };
    return lane_.submit(std::move(request));
  }
  void let_pass() {
    rig_.finish();
    lane_.pump();
  }

  FakeCudaRig rig_;
  StreamId compute_ = rig_.make_stream("compute");
  FakeClock clock_;
  CopyLane lane_{rig_.device(), clock_, Direction::kIn, {.max_in_flight = Bytes(4 * kChunk)}};
  std::vector<std::string> done_;
  std::weak_ptr<void> alive_;
};

TEST_F(CopyLaneOnCuda, JobsGoInTurnWithinTheCapAndADemandOvertakes) {
  submit("first", 3);
  const CopyJobPtr second = submit("second", 2), needed = submit("needed", 2, Urgency::kDemand);
  EXPECT_EQ(second->event(), nullptr);
  EXPECT_NE(needed->event(), nullptr);
  EXPECT_THAT(done_, IsEmpty());
  let_pass();
  let_pass();
  EXPECT_THAT(done_, ElementsAre("first ok", "needed ok", "second ok"));
}

TEST_F(CopyLaneOnCuda, CancelWaitsForWhatIsInFlight) {
  const CopyJobPtr job = submit("large", 6);
  lane_.cancel(job);
  lane_.pump();
  EXPECT_FALSE(alive_.expired());
  let_pass();
  EXPECT_THAT(done_, ElementsAre("large cancelled"));
  EXPECT_TRUE(alive_.expired());
}

TEST_F(CopyLaneOnCuda, WithoutMemoryForAnEventAJobGoesOnLater) {
  rig_.api().fail("event_record", 2,
                  CudaResult::kOutOfMemory);  // the first is the test's, the second begins the timing
  const CopyJobPtr job = submit("job", 2);
  EXPECT_EQ(job->event(), nullptr);
  lane_.pump();
  EXPECT_NE(job->event(), nullptr);
  let_pass();
  EXPECT_THAT(done_, ElementsAre("job ok"));
}

TEST_F(CopyLaneOnCuda, AQueryThatACaptureForbidsFreesNothing) {
  submit("job", 2);
  rig_.api().fail("event_query", 0, CudaResult::kStreamCaptureUnsupported);
  lane_.pump();
  EXPECT_THAT(done_, IsEmpty());
  EXPECT_FALSE(alive_.expired());
  let_pass();
  EXPECT_THAT(done_, ElementsAre("job ok"));
}

TEST_F(CopyLaneOnCuda, ALostDeviceEndsEverythingWithTheFirstReason) {
  const CopyJobPtr first = submit("first", 3), queued = submit("queued", 3);
  rig_.api().lose(CudaResult::kIllegalAddress);
  lane_.pump();
  EXPECT_THAT(done_, ElementsAre("first failed", "queued failed"));
  EXPECT_THAT(first->failure().message, testing::HasSubstr("CUDA_ERROR_700"));
  EXPECT_EQ(queued->failure().message, first->failure().message);
}

/// The pretend driver's time is a millisecond a record: one from before a batch's copies to after them.
TEST_F(CopyLaneOnCuda, TimedEventsMeasureWhatJobsOfThatSizeGet) {
  const size_t large = 20, most = 4;  // chunks: over and under 64 KiB, at most 4 at once
  submit("large", large);
  submit("small", 1);
  while (!lane_.idle()) let_pass();
  EXPECT_DOUBLE_EQ(*lane_.bandwidth().bytes_per_second(Bytes(large * kChunk), LinkUse::kAlone), most * kChunk / 1e-3)
      << "its first batch was timed";
  EXPECT_DOUBLE_EQ(*lane_.bandwidth().bytes_per_second(Bytes(kChunk), LinkUse::kAlone), kChunk / 1e-3);
}

TEST_F(CopyLaneOnCuda, ALargeJobIsEnqueuedBatchByBatch) {
  CopyLane lane(rig_.device(), clock_, Direction::kIn,
                {.max_in_flight = Bytes(4 * kChunk), .max_batch = Bytes(2 * kChunk)});
  const auto host = rig_.host(7 * kChunk), device = rig_.allocate(7 * kChunk, compute_);
  CopyRequest request;
  for (size_t at = 0; at < 7 * kChunk; at += kChunk)
    request.chunks.push_back({device.get() + at, host.get() + at, kChunk});
  const int before = rig_.api().calls("event_record");
  lane.submit(std::move(request));
  EXPECT_EQ(lane.stats().in_flight, Bytes(4 * kChunk)) << "as much as may be";
  EXPECT_EQ(rig_.api().calls("event_record") - before, 2 + 1) << "one a batch, and one before the first, which is timed";
  while (!lane.idle()) {
    rig_.finish();
    lane.pump();
  }
}

TEST_F(CopyLaneOnCuda, OneBatchInEightIsTimed) {
  for (int i = 0; i < 32; ++i) {
    submit("job", 1);
    let_pass();
  }
  EXPECT_EQ(rig_.api().calls("event_elapsed_time"), 4);
  EXPECT_EQ(rig_.api().calls("event_record"), 32 * 2 + 4) << "after the tensor, after its copy, and before a timed one";
}

TEST_F(CopyLaneOnCuda, ABatchThatCannotBeTimedIsCopiedAllTheSame) {
  ASSERT_TRUE(rig_.cuda().record(compute_));  // the pool has one for what is not timed
  rig_.api().fail("event_create", 0, CudaResult::kOutOfMemory);
  submit("job", 1);
  let_pass();
  EXPECT_THAT(done_, ElementsAre("job ok"));
  EXPECT_FALSE(lane_.bandwidth().bytes_per_second(Bytes(kChunk), LinkUse::kAlone));
}

/// Three of four calls of the driver's were for that, a chunk.
TEST_F(CopyLaneOnCuda, TheContextIsEnteredOnceForAllChunksOfABatch) {
  submit("warm", 1);
  let_pass();
  const auto calls_for = [&](size_t chunks) {
    const int before = rig_.api().calls("thread_exchange_stream_capture_mode");
    submit("job", chunks);
    return rig_.api().calls("thread_exchange_stream_capture_mode") - before;
  };
  const int one = calls_for(1);
  let_pass();
  EXPECT_EQ(calls_for(4), one);
  let_pass();
  EXPECT_EQ(rig_.api().calls("memcpy_host_to_device_async"), 1 + 1 + 4);
}

TEST_F(CopyLaneOnCuda, AChunkThatIsRefusedEndsTheJobWhenThoseBeforeItHavePassed) {
  rig_.api().fail("memcpy_host_to_device_async", 2, CudaResult::kInvalidValue);
  submit("job", 4);
  EXPECT_EQ(lane_.stats().in_flight, Bytes(2 * kChunk));
  EXPECT_FALSE(alive_.expired());
  let_pass();
  EXPECT_THAT(done_, ElementsAre("job failed"));
  EXPECT_TRUE(alive_.expired());
}

TEST_F(CopyLaneOnCuda, TheProcessesEndCancelsQuietly) {
  submit("first", 3);
  submit("queued", 3);
  rig_.api().end_process();
  lane_.pump();
  EXPECT_THAT(done_, ElementsAre("first cancelled", "queued cancelled"));
  EXPECT_EQ(lane_.stats().failed, 0);
}

}  // namespace
}  // namespace ebbtide::test
