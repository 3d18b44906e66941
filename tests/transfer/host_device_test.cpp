#include <ebbtide/transfer/clock.h>
#include <ebbtide/transfer/copy_lane.h>
#include <ebbtide/transfer/host_device.h>

#include <gtest/gtest.h>

#include <string>

namespace ebbtide {
namespace {

TEST(HostDevice, EverythingIsDoneAtOnce) {
  HostDevice device;
  EXPECT_TRUE(device.is_host());
  EXPECT_EQ(device.copy_stream(Direction::kOut), kHostStream);
  std::string from = "bytes", to = "     ";
  ASSERT_TRUE(device.copy(to.data(), from.data(), from.size(), Direction::kOut, kHostStream));
  EXPECT_EQ(to, from);
  const EventPtr event = device.record(kHostStream).value();
  EXPECT_TRUE(device.passed(event).value());
  EXPECT_TRUE(device.wait(kHostStream, event));
  EXPECT_TRUE(device.synchronize(event));
  EXPECT_TRUE(device.copy(nullptr, nullptr, 0, Direction::kIn, kHostStream)) << "an empty copy is no copy";
}

TEST(HostDevice, HasOneStream) {
  HostDevice device;
  const StreamId other{7};
  char byte = 0;
  EXPECT_EQ(device.record(other).failure().code, FailureCode::kInvalid);
  EXPECT_EQ(device.wait(other, device.record(kHostStream).value()).failure().code, FailureCode::kInvalid);
  EXPECT_EQ(device.copy(&byte, &byte, 1, Direction::kIn, other).failure().code, FailureCode::kInvalid);
}

TEST(HostDevice, KnowsItsMemory) {
  HostDevice device;
  const Result<DeviceMemory> memory = device.memory();
  ASSERT_TRUE(memory);
  EXPECT_GT(memory.value().total, MiB(64));
  EXPECT_LE(memory.value().free, memory.value().total);
}

TEST(HostDevice, ALaneOverItCopiesInsideSubmit) {
  HostDevice device;
  SteadyClock clock;
  CopyLane lane(device, clock, Direction::kOut);
  std::string from = "bytes", to = "     ";
  int done = 0;
  const CopyJobPtr job = lane.submit(
      {.chunks = {{to.data(), from.data(), from.size()}}, .done = [&](const Status& status) { done += status.ok(); }});
  EXPECT_EQ(to, from);
  EXPECT_NE(job->event(), nullptr);
  lane.pump();
  EXPECT_EQ(job->state(), CopyState::kPassed);
  EXPECT_EQ(done, 1);
  EXPECT_TRUE(lane.idle());
}

}  // namespace
}  // namespace ebbtide
