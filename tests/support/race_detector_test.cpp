#include "tests/support/race_detector.h"

#include <gtest/gtest.h>

#include <array>
#include <cstddef>

namespace ebbtide::test {
namespace {

using Kind = RaceDetector::Kind;
constexpr AgentId kA{0}, kB{1}, kC{2};

class RaceDetectorTest : public testing::Test {
 protected:
  void note(size_t begin, size_t bytes, Kind kind, AgentId agent, uint64_t step, const char* what,
            VectorClock clock = {}) {
    clock.set(agent, step);
    detector_.note(memory_.data() + begin, bytes, kind, {agent, step, what}, clock);
  }
  static VectorClock after(AgentId agent, uint64_t step) {
    VectorClock clock;
    clock.set(agent, step);
    return clock;
  }
  std::array<std::byte, 256> memory_{};
  RaceDetector detector_;
};

TEST_F(RaceDetectorTest, UnorderedWriteAndReadRaceAndBothAreNamed) {
  note(0, 16, Kind::kWrite, kA, 1, "produce");
  note(8, 16, Kind::kRead, kB, 1, "consume");
  ASSERT_EQ(detector_.races().size(), 1u);
  EXPECT_EQ(*detector_.races().begin(), "'consume' reads what 'produce' writes, in no order");
}

TEST_F(RaceDetectorTest, OrderIsTransitiveThroughClocks) {
  note(0, 16, Kind::kWrite, kA, 1, "a");
  VectorClock b = after(kA, 1);
  note(0, 16, Kind::kRead, kB, 1, "b", b);
  b.set(kB, 1);
  note(0, 16, Kind::kWrite, kC, 1, "c", b);
  EXPECT_TRUE(detector_.races().empty());
}

TEST_F(RaceDetectorTest, ReadsDoNotRaceWithReads) {
  note(0, 16, Kind::kRead, kA, 1, "a");
  note(0, 16, Kind::kRead, kB, 1, "b");
  EXPECT_TRUE(detector_.races().empty());
}

TEST_F(RaceDetectorTest, AWriteRacesWithEachReaderItIsNotOrderedAfter) {
  note(0, 16, Kind::kRead, kA, 1, "a");
  note(4, 4, Kind::kRead, kB, 1, "b");
  note(0, 16, Kind::kWrite, kC, 1, "c", after(kA, 1));
  ASSERT_EQ(detector_.races().size(), 1u);
  EXPECT_EQ(*detector_.races().begin(), "'c' writes what 'b' reads, in no order");
}

TEST_F(RaceDetectorTest, AnEarlierStepDoesNotCoverALaterOne) {
  note(0, 16, Kind::kWrite, kA, 1, "first");
  note(0, 16, Kind::kWrite, kA, 2, "second");
  note(0, 16, Kind::kRead, kB, 1, "b", after(kA, 1));
  EXPECT_EQ(detector_.races().size(), 1u);
}

TEST_F(RaceDetectorTest, NeighboursDoNotTouch) {
  note(0, 16, Kind::kWrite, kA, 1, "a");
  note(16, 16, Kind::kWrite, kB, 1, "b");
  note(40, 8, Kind::kWrite, kB, 2, "b2");
  note(32, 8, Kind::kRead, kA, 2, "a2");
  EXPECT_TRUE(detector_.races().empty());
}

TEST_F(RaceDetectorTest, APartOverwrittenLeavesTheRestAsItWas) {
  note(0, 64, Kind::kWrite, kA, 1, "whole");
  note(16, 16, Kind::kWrite, kB, 1, "middle", after(kA, 1));
  note(16, 16, Kind::kRead, kC, 1, "reads middle", after(kB, 1));
  EXPECT_TRUE(detector_.races().empty());
  note(31, 2, Kind::kRead, kC, 2, "reads the border", after(kB, 1));
  ASSERT_EQ(detector_.races().size(), 1u);
  EXPECT_EQ(*detector_.races().begin(), "'reads the border' reads what 'whole' writes, in no order");
}

TEST_F(RaceDetectorTest, AReadOverAGapIsRememberedInTheGap) {
  note(0, 8, Kind::kWrite, kA, 1, "left");
  note(24, 8, Kind::kWrite, kA, 2, "right");
  note(0, 40, Kind::kRead, kB, 1, "over all", after(kA, 2));
  EXPECT_TRUE(detector_.races().empty());
  note(12, 4, Kind::kWrite, kC, 1, "into the gap");
  note(36, 4, Kind::kWrite, kC, 2, "behind the end");
  EXPECT_EQ(detector_.races().size(), 2u);
}

}  // namespace
}  // namespace ebbtide::test
