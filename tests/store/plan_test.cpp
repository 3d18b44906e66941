#include <ebbtide/store/plan.h>

#include <gtest/gtest.h>

#include <vector>

namespace ebbtide {
namespace {

using What = ProfiledStep::What;

TEST(Plan, KeepsAllWithinTheBudget) {
  Profile profile;
  profile.records.assign(2, {.bytes = Bytes(100), .moved = Bytes(100)});
  profile.steps = {{What::kPack, 0, 0},  {What::kPack, 1, 1},   {What::kUnpack, 1, 2},
                   {What::kDeath, 1, 3}, {What::kUnpack, 0, 3}, {What::kDeath, 0, 4}};
  profile.seconds = 4;
  const Machine machine{.link = LinkModel{{1000, 1000}, {1000, 1000}, 0}};
  const Plan result = plan(profile, machine, {.device = Bytes(200)});
  EXPECT_EQ(result.actions, std::vector(2, Action::kKeep));
  EXPECT_EQ(result.predicted.step_s, 4);
  EXPECT_TRUE(result.return_order.empty());
}

}  // namespace
}  // namespace ebbtide
