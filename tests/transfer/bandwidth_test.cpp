#include <ebbtide/transfer/bandwidth.h>

#include <gtest/gtest.h>

namespace ebbtide {
namespace {

TEST(Bandwidth, NothingMeasuredSaysNothing) {
  Bandwidth bandwidth;
  bandwidth.add(MiB(1), 0, LinkUse::kAlone);
  bandwidth.add(Bytes(0), 1, LinkUse::kAlone);
  EXPECT_FALSE(bandwidth.bytes_per_second(MiB(1), LinkUse::kAlone));
}

TEST(Bandwidth, ClassesByPowersOfFour) {
  EXPECT_EQ(Bandwidth::size_class(Bytes(1)), 0u);
  EXPECT_EQ(Bandwidth::size_class(KiB(64)), 0u);
  EXPECT_EQ(Bandwidth::size_class(KiB(64) + Bytes(1)), 1u);
  EXPECT_EQ(Bandwidth::size_class(MiB(64)), 5u);
  EXPECT_EQ(Bandwidth::size_class(GiB(3)), 6u);
}

TEST(Bandwidth, FollowsChangesWithoutJumping) {
  Bandwidth bandwidth;
  bandwidth.add(Bytes(1000), 1, LinkUse::kAlone);
  EXPECT_DOUBLE_EQ(*bandwidth.bytes_per_second(Bytes(1000), LinkUse::kAlone), 1000);
  bandwidth.add(Bytes(2000), 1, LinkUse::kAlone);
  EXPECT_DOUBLE_EQ(*bandwidth.bytes_per_second(Bytes(1000), LinkUse::kAlone), 1200);
  for (int i = 0; i < 50; ++i) bandwidth.add(Bytes(2000), 1, LinkUse::kAlone);
  EXPECT_NEAR(*bandwidth.bytes_per_second(Bytes(1000), LinkUse::kAlone), 2000, 1);
}

TEST(Bandwidth, APartOfATransferCountsForTheSizeOfTheWhole) {
  Bandwidth bandwidth;
  bandwidth.add(MiB(16), MiB(1), 0.5, LinkUse::kAlone);
  bandwidth.add(KiB(64), KiB(640), 10, LinkUse::kAlone);
  EXPECT_DOUBLE_EQ(*bandwidth.bytes_per_second(MiB(16), LinkUse::kAlone), 2 << 20);
  EXPECT_DOUBLE_EQ(*bandwidth.bytes_per_second(KiB(64), LinkUse::kAlone), 64 << 10);
}

TEST(Bandwidth, OfLargeTransfersAllSizesTogetherByTheirBytes) {
  Bandwidth bandwidth;
  bandwidth.add(KiB(512), 1, LinkUse::kAlone);
  EXPECT_FALSE(bandwidth.large(LinkUse::kAlone)) << "too small to tell";
  bandwidth.add(MiB(1), 1, LinkUse::kAlone);
  EXPECT_DOUBLE_EQ(*bandwidth.large(LinkUse::kAlone), 1 << 20);
  for (int i = 0; i < 8; ++i) {
    bandwidth.add(MiB(684), 10, LinkUse::kAlone);  // what moves most of the bytes
    bandwidth.add(MiB(1), 1, LinkUse::kAlone);
  }
  EXPECT_NEAR(*bandwidth.large(LinkUse::kAlone), 68.4 * (1 << 20), 22e6) << "one of little says little";
  EXPECT_FALSE(bandwidth.large(LinkUse::kDuplex));
}

TEST(Bandwidth, FallsBackToTheNearestClassThenToTheOtherUse) {
  Bandwidth bandwidth;
  bandwidth.add(KiB(64), 1, LinkUse::kDuplex);
  EXPECT_DOUBLE_EQ(*bandwidth.bytes_per_second(GiB(1), LinkUse::kAlone), 65536);
  bandwidth.add(MiB(4), 1, LinkUse::kAlone);
  bandwidth.add(MiB(64), 1, LinkUse::kAlone);
  EXPECT_DOUBLE_EQ(*bandwidth.bytes_per_second(MiB(16), LinkUse::kAlone), 64 << 20) << "between two, the larger";
  EXPECT_DOUBLE_EQ(*bandwidth.bytes_per_second(Bytes(1), LinkUse::kAlone), 4 << 20);
  EXPECT_DOUBLE_EQ(*bandwidth.bytes_per_second(GiB(1), LinkUse::kDuplex), 65536) << "its own use first";
}

}  // namespace
}  // namespace ebbtide
