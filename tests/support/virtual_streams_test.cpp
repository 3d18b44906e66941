#include "tests/support/virtual_streams.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

namespace ebbtide::test {
namespace {

constexpr AgentId kA{1}, kB{2};

TEST(VirtualStreams, StreamOrderAndWaitsHoldInEverySchedule) {
  for (uint64_t seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    VirtualStreams streams(seed);
    streams.add(kA);
    streams.add(kB);
    std::vector<int> ran;
    const auto task = [&](int i) { return [&ran, i] { ran.push_back(i); }; };
    const auto at = [&](int i) { return std::ranges::find(ran, i) - ran.begin(); };
    streams.push(kA, {}, task(0));
    streams.turn();
    const StreamPoint point = streams.push(kA, {}, task(1));
    streams.push(kB, {}, task(10));
    streams.turn();
    streams.wait(kB, {}, point);
    streams.push(kB, {}, task(11));
    streams.push(kA, {}, task(2));
    streams.turn();
    streams.drain_all();
    ASSERT_EQ(ran.size(), 5u);
    EXPECT_LT(at(0), at(1));
    EXPECT_LT(at(1), at(2));
    EXPECT_LT(at(10), at(11));
    EXPECT_LT(at(1), at(11));
  }
}

TEST(VirtualStreams, SchedulesDifferBySeedAndReplay) {
  const auto run = [](uint64_t seed) {
    VirtualStreams streams(seed);
    streams.add(kA);
    streams.add(kB);
    for (int i = 0; i < 20; ++i) {
      streams.push(i % 3 ? kA : kB, {}, nullptr);
      streams.turn();
    }
    streams.drain_all();
    return streams.schedule();
  };
  std::vector<uint64_t> schedules;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    schedules.push_back(run(seed));
    EXPECT_EQ(schedules.back(), run(seed));
  }
  std::ranges::sort(schedules);
  EXPECT_GT(std::unique(schedules.begin(), schedules.end()) - schedules.begin(), 5);
}

TEST(VirtualStreams, LazyRunsOnlyWhatIsNeeded) {
  VirtualStreams streams(0, Pace::kLazy);
  streams.add(kA);
  streams.add(kB);
  const StreamPoint a = streams.push(kA, {}, nullptr);
  const StreamPoint b = streams.push(kB, {}, nullptr);
  streams.turn();
  EXPECT_FALSE(streams.passed(a));
  streams.drain(a);
  EXPECT_TRUE(streams.passed(a));
  EXPECT_FALSE(streams.passed(b));
}

TEST(VirtualStreams, EagerRunsAllThatItsWaitsAllow) {
  VirtualStreams streams(0, Pace::kEager);
  streams.add(kA);
  const StreamPoint point = streams.push(kA, {}, nullptr);
  streams.turn();
  EXPECT_TRUE(streams.passed(point));
}

TEST(VirtualStreams, ClocksCarryWhatAPointIsOrderedAfter) {
  VirtualStreams streams(0, Pace::kLazy);
  streams.add(kA);
  streams.add(kB);
  VectorClock host;
  host.set(AgentId{0}, 7);
  streams.push(kA, host, nullptr);
  const StreamPoint a = streams.last(kA);
  streams.push(kA, {}, nullptr);
  streams.wait(kB, {}, a);
  const StreamPoint b = streams.push(kB, {}, nullptr);
  EXPECT_EQ(b.clock[AgentId{0}], 7u);
  EXPECT_EQ(b.clock[kA], 1u);
  EXPECT_EQ(b.clock[kB], 2u);
}

}  // namespace
}  // namespace ebbtide::test
