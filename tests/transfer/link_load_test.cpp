#include <ebbtide/transfer/link_load.h>

#include <gtest/gtest.h>

#include <optional>
#include <vector>

#include "tests/support/clocked_device.h"

namespace ebbtide {
namespace {

using test::ClockedDevice;

class LinkLoadTest : public testing::Test {
 protected:
  /// Copies that run from `begin` on, milliseconds on the device's clock, and take `ms`. REQUIRES: times never fall.
  TimedCopies copies(Direction direction, double begin, double ms) {
    const StreamId stream = device_.copy_stream(direction);
    device_.compute(begin / 1e3 - device_.compute_now());
    EXPECT_TRUE(device_.wait(stream, device_.record(ClockedDevice::kCompute).value()));
    TimedCopies copies{.begin = device_.record_timed(stream).value()};
    char from = 0, to = 0;
    for (double i = 0; i < ms; ++i) EXPECT_TRUE(device_.copy(&to, &from, 1, direction, stream));
    copies.end = device_.record_timed(stream).value();
    load_.enqueued(direction, copies);
    return copies;
  }
  /// When the device has come to its `ms`.
  std::optional<LinkUse> use_at(double ms, Direction direction, const TimedCopies& copies) {
    device_.host_spends(ms / 1e3 - host_s_);
    host_s_ = ms / 1e3;
    return load_.use_of(device_, direction, copies);
  }

  ClockedDevice device_{{.latency_s = 1e-3}};
  LinkLoad load_;
  double host_s_ = 0;
};

TEST_F(LinkLoadTest, CopiesThatRanOneAfterTheOtherRanAlone) {
  const TimedCopies out = copies(Direction::kOut, 0, 10), in = copies(Direction::kIn, 20, 10);
  EXPECT_EQ(use_at(40, Direction::kOut, out), LinkUse::kAlone);
  EXPECT_EQ(use_at(40, Direction::kIn, in), LinkUse::kAlone);
}

TEST_F(LinkLoadTest, WhatIsEnqueuedLongBeforeItRunsIsNoTraffic) {
  const TimedCopies out = copies(Direction::kOut, 0, 10);
  copies(Direction::kIn, 1000, 10);
  EXPECT_EQ(use_at(11, Direction::kOut, out), LinkUse::kAlone) << "the caller is a second ahead";
}

TEST_F(LinkLoadTest, SideBySideIsDuplexAndPartlySoIsNeither) {
  const TimedCopies before = copies(Direction::kOut, 0, 5), out = copies(Direction::kOut, 10, 10);
  const TimedCopies in = copies(Direction::kIn, 10, 10), later = copies(Direction::kIn, 20, 10);
  const TimedCopies half = copies(Direction::kOut, 25, 10);
  EXPECT_EQ(use_at(50, Direction::kOut, before), LinkUse::kAlone);
  EXPECT_EQ(use_at(50, Direction::kOut, out), LinkUse::kDuplex);
  EXPECT_EQ(use_at(50, Direction::kOut, half), std::nullopt);
  EXPECT_EQ(use_at(50, Direction::kIn, in), LinkUse::kDuplex);
  EXPECT_EQ(use_at(50, Direction::kIn, later), std::nullopt);
}

TEST_F(LinkLoadTest, ManySmallCopiesBesideALargeOneAreTraffic) {
  const TimedCopies large = copies(Direction::kOut, 0, 30);
  std::vector<TimedCopies> small;
  for (int i = 0; i < 30; ++i) small.push_back(copies(Direction::kIn, i, 1));
  EXPECT_EQ(use_at(15.5, Direction::kIn, small[10]), LinkUse::kDuplex) << "though the large one still runs";
  EXPECT_EQ(use_at(40, Direction::kOut, large), LinkUse::kDuplex);
  EXPECT_EQ(use_at(40, Direction::kIn, small[29]), LinkUse::kDuplex);
}

TEST_F(LinkLoadTest, WhatNobodyAsksAboutIsForgotten) {
  for (int i = 0; i < 1000; ++i) copies(Direction::kOut, 10.0 * i, 1);
  const TimedCopies in = copies(Direction::kIn, 9990, 1);
  EXPECT_EQ(use_at(20000, Direction::kIn, in), LinkUse::kDuplex);
}

}  // namespace
}  // namespace ebbtide
