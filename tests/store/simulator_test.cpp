#include <ebbtide/store/plan.h>
#include <ebbtide/store/simulator.h>

#include <gtest/gtest.h>

#include <vector>

namespace ebbtide {
namespace {

using What = ProfiledStep::What;

/// `count` records of 100 bytes, packed a second apart and asked for in reverse, two seconds apart.
Profile chain(uint32_t count) {
  Profile profile;
  for (uint32_t i = 0; i < count; ++i) {
    profile.records.push_back({.bytes = Bytes(100), .moved = Bytes(100)});
    profile.steps.push_back({What::kPack, i, static_cast<double>(i)});
  }
  double at = count;
  for (uint32_t i = count; i-- > 0; at += 2) {
    profile.steps.push_back({What::kUnpack, i, at});
    profile.steps.push_back({What::kDeath, i, at + 2});
  }
  profile.seconds = at;
  return profile;
}

TEST(Simulator, AFastLinkCostsNothing) {
  const Profile profile = chain(10);
  ASSERT_EQ(profile.invalid(), std::nullopt);
  const Machine machine{.link = LinkModel{{1000, 1000}, {1000, 1000}, 0}};
  Simulator simulator(profile, machine, {.device = Bytes(300)});
  const Simulated result = simulator.run(std::vector(10, Action::kOffload));
  EXPECT_DOUBLE_EQ(result.step_s, 30);
  EXPECT_EQ(result.device_peak, Bytes(300));
  EXPECT_EQ(result.moved_in, Bytes(700));
  EXPECT_EQ(result.squeezed, 0);
}

}  // namespace
}  // namespace ebbtide
