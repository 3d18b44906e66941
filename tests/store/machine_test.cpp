#include <ebbtide/store/machine.h>

#include <gtest/gtest.h>

namespace ebbtide {
namespace {

Bandwidth at(double bytes_per_second, LinkUse use) {
  Bandwidth bandwidth;
  bandwidth.add(MiB(16), static_cast<double>(MiB(16).count()) / bytes_per_second, use);
  return bandwidth;
}

TEST(LinkModel, NoneBeforeBothDirectionsAreKnown) {
  EXPECT_FALSE(LinkModel::of({}));
  EXPECT_FALSE(LinkModel::of({at(1e9, LinkUse::kAlone), {}}));
}

TEST(LinkModel, BothAtOnceIsWhatWasMeasuredElseALittleLess) {
  LinkBandwidth measured{at(1e9, LinkUse::kAlone), at(2e9, LinkUse::kAlone)};
  const LinkModel guessed = *LinkModel::of(measured);
  EXPECT_DOUBLE_EQ(guessed.out.alone, 1e9);
  EXPECT_GT(guessed.out.duplex, 0.8e9);
  EXPECT_LT(guessed.out.duplex, 1e9);
  measured.out.add(MiB(16), static_cast<double>(MiB(16).count()) / 0.6e9, LinkUse::kDuplex);
  EXPECT_DOUBLE_EQ(LinkModel::of(measured)->out.duplex, 0.6e9);
  EXPECT_DOUBLE_EQ(LinkModel::of(measured)->out.alone, 1e9);
}

}  // namespace
}  // namespace ebbtide
