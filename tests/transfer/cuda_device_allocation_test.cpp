// After warm-up, CudaDevice allocates nothing, nor do the lanes for tensors of one chunk.
#include "tests/support/count_allocations.h"

#include <ebbtide/transfer/copy_lane.h>
#include <ebbtide/transfer/cuda_device.h>

#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "tests/support/noop_cuda_api.h"

namespace ebbtide::test {
namespace {

TEST(CudaDeviceAllocation, NoneAfterWarmUp) {
  const auto cuda = CudaDevice::open(std::make_shared<NoopCudaApi>(), 0).value();
  const StreamId compute{0x100}, out = cuda->copy_stream(Direction::kOut);
  char byte = 0;
  std::vector<EventPtr> in_flight(100);
  const auto round = [&] {
    for (EventPtr& event : in_flight) {
      const EventPtr produced = cuda->record(compute).value();
      ASSERT_TRUE(cuda->wait(out, produced));
      ASSERT_TRUE(cuda->copy(&byte, &byte, 1, Direction::kOut, out));
      event = cuda->record(out).value();
      ASSERT_TRUE(cuda->wait(compute, event));
      ASSERT_TRUE(cuda->passed(event).value());
    }
    for (EventPtr& event : in_flight) event.reset();
  };
  const int64_t cold = allocations;
  round();
  EXPECT_GT(allocations - cold, 100) << "the counter counts";
  const int64_t warm = allocations;
  round();
  round();
  EXPECT_EQ(allocations - warm, 0);
}

TEST(CudaDeviceAllocation, NoneByALaneAfterWarmUp) {
  const auto cuda = CudaDevice::open(std::make_shared<NoopCudaApi>(), 0).value();
  const SteadyClock clock;
  const StreamId compute{0x100};
  CopyLane lane(*cuda, clock, Direction::kOut);
  char byte = 0;
  int done = 0;
  std::vector<CopyJobPtr> jobs(96);  // of which as many are timed in every round
  const auto round = [&] {
    for (CopyJobPtr& job : jobs)
      job = lane.submit({.chunks = {{&byte, &byte, 1}},
                         .after = cuda->record(compute).value(),
                         .done = [&done](const Status& status) { done += status.ok(); }});
    lane.pump();
    for (CopyJobPtr& job : jobs) job.reset();
  };
  round();
  const int64_t warm = allocations;
  round();
  round();
  EXPECT_EQ(allocations - warm, 0);
  EXPECT_EQ(done, 3 * 96);
}

}  // namespace
}  // namespace ebbtide::test
