// Named regions and their policies.
#include <ebbtide/ebbtide.h>
#include <ebbtide/store/store_core.h>

#include <gmock/gmock.h>

#include <string>

#include "support.h"

namespace ebbtide::test {
namespace {

using testing::HasSubstr;

TEST(RegionTest, TheReportAndThePlanNameThem) {
  Folder folder;
  Store store(spilling(folder, KiB(40)));
  const at::Tensor x = leaf();
  for (int step = 0; step < 4; ++step) {
    at::Tensor y;
    {
      OffloadScope scope(store);
      at::Tensor h;
      {
        Region outer("encoder");
        h = (x * 2).sin().exp();
        Region inner("encoder.head");
        h = h.tanh() * h.cos();
      }
      y = h.sin().sum();
    }
    y.backward();
  }
  expect_all_is_over(store);
  const Stats stats = store.stats();
  EXPECT_TRUE(stats.regions.contains("encoder"));
  EXPECT_TRUE(stats.regions.contains("encoder.head"));
  EXPECT_THAT(store.report(), HasSubstr("encoder.head"));
  int named = 0, others = 0;
  for (const PlannedRecord& record : store.plan()) record.region.empty() ? ++others : ++named;
  EXPECT_GT(named, 0);
  EXPECT_GT(others, 0);
}

/// Nodes that save what they read and what they make, some of which has recipes.
at::Tensor net(const at::Tensor& x) {
  return ((x * 2).sin().exp().tanh().cos() * x.sigmoid()).sum();
}

Stats trained(Store& store, Policy policy, const at::Tensor& x) {
  const at::Tensor expected = gradient_of(net(x), x);
  at::Tensor y;
  {
    OffloadScope scope(store);
    Region region("all", policy);
    y = net(x);
  }
  EXPECT_TRUE(same_bits(gradient_of(y, x), expected));
  y.reset();
  expect_all_is_over(store);
  return store.stats();
}

TEST(RegionTest, OffloadedThoughTheBudgetHasRoom) {
  Folder folder;
  for (const Policy policy : {Policy::kOffload, Policy::kSpill}) {
    Store store(spilling(folder, GiB(1)));
    const Stats stats = trained(store, policy, leaf());
    EXPECT_EQ(stats.spilled.tensors, stats.saved.tensors);
  }
  Store store(spilling(folder, GiB(1)));
  const Stats stats = trained(store, Policy::kAuto, leaf());
  EXPECT_EQ(stats.kept.tensors, stats.saved.tensors);
}

TEST(RegionTest, RecomputedThoughTheBudgetHasRoom) {
  Store store(keeping());
  const Stats stats = trained(store, Policy::kRecompute, leaf());
  EXPECT_GT(stats.recomputed.tensors, 0);
}

TEST(RegionTest, KeptThoughOthersLeave) {
  Folder folder;
  Store store(spilling(folder, KiB(256)));
  store.core()->follow_plans(false);
  const at::Tensor x = leaf();
  at::Tensor y;
  {
    OffloadScope scope(store);
    at::Tensor h = x * 2;
    {
      Region region("kept", Policy::kKeep);
      h = h.sin().exp();
    }
    for (int i = 0; i < 40; ++i) h = h.sigmoid().cos();
    y = h.sum();
  }
  y.backward();
  y.reset();
  expect_all_is_over(store);
  const Stats stats = store.stats();
  EXPECT_EQ(stats.regions.at("kept").kept.tensors, 2);
  EXPECT_EQ(stats.regions.at("kept").spilled.tensors + stats.regions.at("kept").recomputed.tensors, 0);
  EXPECT_GT(stats.spilled.tensors + stats.recomputed.tensors, 0);
}

TEST(RegionTest, WrongNamesAreErrors) {
  EXPECT_THAT([] { Region region(""); }, testing::ThrowsMessage<ConfigError>(HasSubstr("name=''")));
  EXPECT_THAT([] { (void)parse_policy("recompte"); },
              testing::ThrowsMessage<ConfigError>(HasSubstr("policy='recompte' is not valid: accepted are 'auto'")));
}

TEST(RegionTest, ARegionsNameIsOver) {
  Store store(keeping());
  const at::Tensor x = leaf();
  { Region region("empty"); }
  at::Tensor y;
  {
    OffloadScope scope(store);
    y = chain(x * 2);
  }
  y.backward();
  y.reset();
  expect_all_is_over(store);
  EXPECT_TRUE(store.stats().regions.empty());
}

}  // namespace
}  // namespace ebbtide::test
