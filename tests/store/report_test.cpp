#include <ebbtide/store/report.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace ebbtide {
namespace {

using testing::HasSubstr;
using testing::Not;

TEST(Report, SaysWhatToDoWhenNothingWasSaved) {
  EXPECT_THAT(render_report({}, {}, {}), HasSubstr("No pass yet"));
}

TEST(Report, SaysWhyNothingMoved) {
  Stats stats;
  stats.passes = 1;
  stats.packed.add(MiB(1));
  stats.saved.add(MiB(1));
  stats.kept.add(MiB(1));
  stats.device = {Bytes(0), MiB(1), GiB(1)};
  EXPECT_THAT(render_report(stats, {}, {}), HasSubstr("within device_budget (1 GiB)"));
  stats.device = {Bytes(0), MiB(1), MiB(1)};
  EXPECT_THAT(render_report(stats, {}, {}), HasSubstr("spill_to"));
  stats.spilled.add(MiB(1));
  EXPECT_THAT(render_report(stats, {}, {}), Not(HasSubstr("Nothing moved")));
}

TEST(Report, ManyRegionsOfNumberedModulesAreOneEach) {
  Stats stats;
  Fates fates;
  fates.kept.add(MiB(1));
  for (int i = 0; i < 24; ++i) stats.regions["blocks." + std::to_string(i) + ".mlp"] = fates;
  EXPECT_THAT(render_report(stats, {}, {}), HasSubstr("blocks.17.mlp"));
  stats.regions["blocks.24.mlp"] = stats.regions["head"] = fates;
  const std::string report = render_report(stats, {}, {});
  EXPECT_THAT(report, HasSubstr("  blocks.*.mlp                             25 MiB"));
  EXPECT_THAT(report, HasSubstr("  head "));
  EXPECT_THAT(report, Not(HasSubstr("blocks.17")));
}

DeviceStats with_burst(const std::string& node, Bytes bytes) {
  DeviceStats device;
  device.name = "chaos";
  device.budget_bytes = MiB(100);
  device.burst = {node, bytes, MiB(1000)};
  return device;
}

TEST(Report, NamesTheCompiledGraphThatNoBudgetBounds) {
  Stats stats;
  stats.devices = {DeviceStats(), with_burst("CompiledFunctionBackward", MiB(900))};
  EXPECT_THAT(render_report(stats, {}, {}),
              HasSubstr("On chaos one compiled graph of 900 MiB: its backward asks for all of it at once, whatever "
                        "device_budget (100 MiB) is. Compile per block: for block in model.blocks: block.compile()\n"));
}

TEST(Report, NamesTheNodeThatHadMoreThanTheBudget) {
  Stats stats;
  stats.devices = {DeviceStats(), with_burst("CompiledFunctionBackward", MiB(200))};  // compiled per block already
  EXPECT_THAT(render_report(stats, {}, {}), Not(HasSubstr("block.compile()")));
  stats.devices = {DeviceStats(), with_burst("MyFunctionBackward", MiB(200))};
  EXPECT_THAT(render_report(stats, {}, {}),
              HasSubstr("On chaos one node of the backward (MyFunctionBackward) had 200 MiB of saved tensors at once, "
                        "over device_budget (100 MiB).\n"));
}

TEST(Report, SaysWhoseThePeakIs) {
  Stats stats;
  DeviceStats device = with_burst("", Bytes(0));
  device.memory = {.most = GiB(10), .peak = GiB(9), .saved = GiB(2), .others = GiB(7.5), .at = "in the backward"};
  stats.devices = {DeviceStats(), device};
  EXPECT_THAT(
      render_report(stats, {}, {}),
      HasSubstr("of chaos the process had 9 GiB of 10 GiB at its peak (when it was last measured), 2 GiB of them "
                "saved tensors,\n  in the backward\n  without saved tensors 7.50 GiB at most, which leaves them "
                "100 MiB\n"));
}

TEST(Report, NamesTheRegionsThatWereWaitedFor) {
  Stats stats;
  stats.stalled_regions = {{"blocks.0", {2, 0.25}}, {"blocks.1", {1, 0.5}}};
  EXPECT_THAT(render_report(stats, {}, {}),
              testing::ContainsRegex("in blocks.1 +1 +0.500 s\n +in blocks.0 +2 +0.250 s"));
}

TEST(Report, SaysWhatDisksAreWornBy) {
  Stats stats;
  stats.disk_write = {GiB(4), 2.0};
  stats.wear = {GiB(2), TiB(3), 0};
  EXPECT_THAT(render_report(stats, {}, {}), HasSubstr("written: 2 GiB a pass, 3 TiB a day at this pace\n"));
  stats.wear.days_to_rated = 199.6;
  EXPECT_THAT(render_report(stats, {}, {}), HasSubstr("at this pace, what the disks are rated for in 200 days\n"));
}

TEST(Report, SaysWhatIsAliveAndInNoBudget) {
  Stats stats;
  EXPECT_THAT(render_report(stats, {}, {}), Not(HasSubstr("in no budget")));
  stats.handed_over_peak = MiB(12);
  stats.referenced_elsewhere = stats.referenced_elsewhere_peak = MiB(3);
  const std::string report = render_report(stats, {}, {});
  EXPECT_THAT(report, HasSubstr("  handed over to nodes              0 B       12 MiB\n"));
  EXPECT_THAT(report, HasSubstr("  referenced elsewhere            3 MiB        3 MiB\n"));
}

TEST(Report, SaysWhereHostMemoryIsLessThanAsked) {
  Stats stats;
  EXPECT_THAT(render_report(stats, {}, {}), Not(HasSubstr("pinned")));
  stats.host_pageable_because = "the driver is out of registrations";
  stats.host_other_node = 3;
  const std::string report = render_report(stats, {}, {});
  EXPECT_THAT(report,
              HasSubstr("  not all of it is pinned, so that copies are slow and waited for: the driver is out of "
                        "registrations\n"));
  EXPECT_THAT(report, HasSubstr("  3 blocks lie on another NUMA node"));
}

TEST(Report, SaysFromWhereAPlanIsFrozen) {
  Stats stats;
  const ReportContext context{.plan_file = "/a/plan.json"};
  EXPECT_THAT(render_report(stats, {}, {}), Not(HasSubstr("frozen")));
  EXPECT_THAT(render_report(stats, {}, context), HasSubstr("the plan is frozen, from /a/plan.json\n"));
  stats.passes = 1;
  EXPECT_THAT(render_report(stats, {}, context), HasSubstr("/a/plan.json; the last pass is of no kind that it knows"));
}

TEST(Report, NamesEachReasonWithItsBytes) {
  Stats stats;
  stats.passed_through_reasons["parameter or leaf"].add(MiB(3));
  EXPECT_THAT(render_report(stats, {}, {}),
              HasSubstr("  parameter or leaf                                       1        3 MiB"));
}

TEST(Report, NamesTheOpsThatWereRunAgainAndThoseThatMustNotBe) {
  Stats stats;
  stats.recomputed_ops["gelu"].add(MiB(3));
  stats.unequal_redos["tanh"] = 2;
  EXPECT_THAT(render_report(stats, {}, {}),
              HasSubstr("gelu                                                  1        3 MiB"));
  EXPECT_THAT(render_report(stats, {}, {}),
              HasSubstr("tanh: 2 call sites give other bits when run again, and are stored"));
}

}  // namespace
}  // namespace ebbtide
