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
