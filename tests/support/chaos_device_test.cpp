#include "tests/support/chaos_device.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <set>
#include <thread>
#include <vector>

namespace ebbtide::test {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::SizeIs;

class ChaosDeviceTest : public testing::Test {
 protected:
  std::shared_ptr<std::byte> allocate(size_t bytes, StreamId stream) {
    return device_.allocate(bytes, stream, "tensor").value();
  }
  void fill(const std::shared_ptr<std::byte>& memory, size_t bytes, int value) {
    ASSERT_TRUE(device_.launch(compute_, "fill", {}, {{memory.get(), bytes}},
                               [to = memory.get(), bytes, value] { std::memset(to, value, bytes); }));
  }
  ChaosDevice device_{{.pace = Pace::kLazy}};
  StreamId compute_ = device_.make_stream("compute");
  StreamId out_ = device_.copy_stream(Direction::kOut);
  std::vector<std::byte> host_ = std::vector<std::byte>(64);
};

TEST_F(ChaosDeviceTest, OrderedCopyIsCleanAndRight) {
  const auto memory = allocate(64, compute_);
  fill(memory, 64, 5);
  const EventPtr filled = device_.record(compute_).value();
  ASSERT_TRUE(device_.wait(out_, filled));
  ASSERT_TRUE(device_.copy(host_.data(), memory.get(), 64, Direction::kOut, out_));
  const EventPtr copied = device_.record(out_).value();
  EXPECT_FALSE(device_.passed(copied).value());
  EXPECT_EQ(host_[0], std::byte{0}) << "nothing runs before it must";
  ASSERT_TRUE(device_.synchronize(copied));
  device_.host_read(host_.data(), 64, "check");
  EXPECT_EQ(host_, std::vector<std::byte>(64, std::byte{5}));
  EXPECT_THAT(device_.races(), IsEmpty());
}

TEST_F(ChaosDeviceTest, MissingWaitIsARaceThatNamesBothSides) {
  const auto memory = allocate(64, compute_);
  fill(memory, 64, 5);
  ASSERT_TRUE(device_.copy(host_.data(), memory.get(), 64, Direction::kOut, out_));
  EXPECT_THAT(device_.races(), ElementsAre("'copy on copy out' reads what 'fill on compute' writes, in no order"));
}

TEST_F(ChaosDeviceTest, HostMustSeeTheEventPassBeforeItReads) {
  const auto memory = allocate(64, compute_);
  ASSERT_TRUE(device_.copy(host_.data(), memory.get(), 64, Direction::kOut, out_));
  const EventPtr copied = device_.record(out_).value();
  device_.run_all();  // it has passed, but the host did not look
  device_.host_read(host_.data(), 64, "too early");
  EXPECT_THAT(device_.races(), SizeIs(1));
  ASSERT_TRUE(device_.passed(copied).value());
  device_.host_write(host_.data(), 64, "in time");
  EXPECT_THAT(device_.races(), SizeIs(1));
}

TEST_F(ChaosDeviceTest, FreedMemoryIsPoisonedAndHandedOutAgain) {
  auto memory = allocate(64, compute_);
  fill(memory, 64, 5);
  std::byte* const where = memory.get();
  memory.reset();
  EXPECT_EQ(device_.live_bytes(), Bytes(0));
  const auto again = allocate(64, compute_);
  EXPECT_EQ(again.get(), where);
  EXPECT_NE(allocate(64, out_).get(), where) << "another stream's memory";
  device_.run_all();
  EXPECT_EQ(*again, ChaosDevice::kPoison);
  EXPECT_THAT(device_.races(), IsEmpty());
}

TEST_F(ChaosDeviceTest, AFreeIsAWriteOnTheStreamOfTheAllocation) {
  auto memory = allocate(64, compute_);
  ASSERT_TRUE(device_.copy(host_.data(), memory.get(), 64, Direction::kOut, out_));
  memory.reset();
  EXPECT_THAT(device_.races(),
              ElementsAre("'free tensor on compute' writes what 'copy on copy out' reads, in no order"));
}

TEST_F(ChaosDeviceTest, CapacityCountsLiveMemory) {
  auto most = device_.allocate(size_t{60} << 20, compute_, "most").value();
  EXPECT_EQ(device_.allocate(size_t{8} << 20, compute_, "more").failure().code, FailureCode::kOverCapacity);
  EXPECT_EQ(device_.memory().value().free, MiB(4));
  most.reset();
  EXPECT_TRUE(device_.allocate(size_t{8} << 20, compute_, "more"));
  EXPECT_EQ(device_.peak_live_bytes(), MiB(60));
}

TEST_F(ChaosDeviceTest, AgentsAreOrderedByMomentsOnly) {
  device_.host_write(host_.data(), 64, "fill block");
  VectorClock written = device_.host_moment();
  {
    ChaosDevice::AgentScope disk(device_, "disk");
    device_.host_read(host_.data(), 32, "early write");
    device_.host_after(written);
    device_.host_read(host_.data() + 32, 32, "write");
  }
  EXPECT_THAT(device_.races(),
              ElementsAre("'early write by disk' reads what 'fill block by program' writes, in no order"));
}

TEST_F(ChaosDeviceTest, UnregisteringHostMemoryUnderACopyIsARace) {
  const auto memory = allocate(64, compute_);
  ASSERT_TRUE(device_.register_host(host_.data(), 64));
  ASSERT_TRUE(device_.copy(host_.data(), memory.get(), 64, Direction::kOut, out_));
  device_.unregister_host(host_.data(), 64);
  EXPECT_THAT(device_.races(), SizeIs(1));
  EXPECT_THAT(device_.misuse(), IsEmpty());
}

TEST_F(ChaosDeviceTest, SaysWhatMakesNoSense) {
  ChaosDevice other;
  auto memory = allocate(64, compute_);
  std::byte* const where = memory.get();
  memory.reset();
  EXPECT_FALSE(device_.copy(host_.data(), where, 64, Direction::kOut, out_));
  EXPECT_FALSE(device_.wait(compute_, other.record(other.copy_stream(Direction::kIn)).value()));
  EXPECT_FALSE(device_.record(StreamId{99}));
  device_.unregister_host(host_.data(), 64);
  EXPECT_THAT(device_.misuse(), SizeIs(4));
}

TEST_F(ChaosDeviceTest, FaultsComeWhenToldAndOnce) {
  device_.fail(ChaosDevice::Call::kRecord, 1, {FailureCode::kOverCapacity, 0, "no event"});
  EXPECT_TRUE(device_.record(compute_));
  EXPECT_FALSE(device_.record(compute_));
  EXPECT_TRUE(device_.record(compute_));
  device_.lose({FailureCode::kDeviceLost, 0, "lost"});
  EXPECT_FALSE(device_.record(compute_));
  EXPECT_FALSE(device_.record(compute_));
}

TEST(ChaosDevice, SeparateThreadsAreOrderedByMomentsOnly) {
  ChaosDevice device({.separate_threads = true});
  const StreamId out = device.copy_stream(Direction::kOut);
  const auto memory = device.allocate(64, out, "tensor").value();
  std::array<std::byte, 64> host{};
  VectorClock seen;
  std::thread([&] {
    ASSERT_TRUE(device.copy(host.data(), memory.get(), 64, Direction::kOut, out));
    ASSERT_TRUE(device.synchronize(device.record(out).value()));
    seen = device.host_moment();
  }).join();
  device.host_read(host.data(), 32, "unordered");
  EXPECT_THAT(device.races(), SizeIs(1));
  device.host_after(seen);
  device.host_read(host.data() + 32, 32, "ordered");
  EXPECT_THAT(device.races(), SizeIs(1));
}

TEST(ChaosDevice, ASeedReplays) {
  const auto run = [](uint64_t seed) {
    ChaosDevice device({.seed = seed});
    const StreamId compute = device.make_stream("compute");
    for (int i = 0; i < 20; ++i) {
      auto memory = device.allocate(64, compute, "tensor").value();
      (void)device.launch(compute, "fill", {}, {{memory.get(), 64}}, [] {});
      (void)device.launch(device.copy_stream(Direction::kIn), "something else", {}, {}, [] {});
    }
    device.run_all();
    EXPECT_THAT(device.races(), IsEmpty());
    return device.schedule();
  };
  std::set<uint64_t> schedules;
  for (uint64_t seed = 0; seed < 10; ++seed) {
    EXPECT_EQ(*schedules.insert(run(seed)).first, run(seed));
  }
  EXPECT_GT(schedules.size(), 3u);
}

}  // namespace
}  // namespace ebbtide::test
