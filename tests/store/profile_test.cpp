#include <ebbtide/store/profile.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

namespace ebbtide {
namespace {

using What = ProfiledStep::What;
using testing::HasSubstr;

/// Two records, of which the second is made again from the first.
Profile small() {
  Profile profile;
  profile.records.push_back(
      {.bytes = Bytes(100), .moved = Bytes(80), .op = "mm", .region = "layer \"0\"", .kind = ~uint64_t{0}});
  profile.records.push_back({.bytes = Bytes(50), .moved = Bytes(50), .device = 1, .mobility = Mobility::kStays});
  profile.records[1].recipe = ProfiledRecipe{0.1, {0}};
  profile.steps = {{What::kPack, 0, 0},  {What::kPack, 1, 1},   {What::kUnpack, 1, 2},
                   {What::kDeath, 1, 3}, {What::kUnpack, 0, 3}, {What::kDeath, 0, 1.0 / 3 + 4}};
  profile.seconds = 5;
  return profile;
}

TEST(Profile, AWholeOneIsValid) {
  EXPECT_EQ(small().invalid(), std::nullopt);
  EXPECT_EQ(Profile().invalid(), std::nullopt);
}

TEST(Profile, SaysWhatIsInvalid) {
  const auto why = [](auto spoil) {
    Profile profile = small();
    spoil(profile);
    return profile.invalid().value_or("valid");
  };
  EXPECT_THAT(why([](Profile& p) { p.records[0].bytes = Bytes(-1); }), HasSubstr("negative size"));
  EXPECT_THAT(why([](Profile& p) { p.records[0].moved = Bytes(101); }), HasSubstr("moves more"));
  EXPECT_THAT(why([](Profile& p) { p.records[1].device = Profile::kMostDevices; }), HasSubstr("on device 1024"));
  EXPECT_THAT(why([](Profile& p) { p.records[0].bytes = p.records[1].bytes = TiB(700'000); }),
              HasSubstr("more than an exbibyte"));
  EXPECT_THAT(why([](Profile& p) { p.records[1].recipe->seconds = -1; }), HasSubstr("no valid time"));
  EXPECT_THAT(why([](Profile& p) { p.records[1].recipe->inputs = {2}; }), HasSubstr("record 2, which is not there"));
  EXPECT_THAT(why([](Profile& p) { p.records[1].recipe->inputs = {1}; }), HasSubstr("rests on itself"));
  EXPECT_THAT(why([](Profile& p) { p.records[0].recipe = ProfiledRecipe{0, {1}}; }), HasSubstr("rests on itself"));
  EXPECT_THAT(why([](Profile& p) { p.records[1].recipe->group = 2; }), HasSubstr("record 2, which is not there"));
  EXPECT_THAT(why([](Profile& p) { p.records[1].recipe->group = 0; }), HasSubstr("not the first of its run"));
  EXPECT_EQ(why([](Profile& p) { p.records[1].recipe->group = 1; }), "valid");
  EXPECT_THAT(why([](Profile& p) { p.steps[2].record = 2; }), HasSubstr("record 2, which is not there"));
  EXPECT_THAT(why([](Profile& p) { p.steps[2].at = 0.5; }), HasSubstr("step 2 is earlier"));
  EXPECT_THAT(why([](Profile& p) { p.steps[1] = p.steps[0]; }), HasSubstr("packed twice"));
  EXPECT_THAT(why([](Profile& p) { std::swap(p.steps[3], p.steps[2]), p.steps[2].at = p.steps[3].at; }),
              HasSubstr("not alive"));
  EXPECT_THAT(why([](Profile& p) { p.steps.clear(); }), HasSubstr("record 0 is never packed"));
  EXPECT_THAT(why([](Profile& p) { p.seconds = 1; }), HasSubstr("the end is earlier"));
}

TEST(Profile, ARunsSecondsAreSharedByBytes) {
  Profile profile = small();
  EXPECT_EQ(redo_shares(profile), (std::vector{0.0, 0.1}));
  profile.records.push_back({.bytes = Bytes(150), .moved = Bytes(150), .recipe = ProfiledRecipe{0.3, {0}, 1}});
  profile.records[1].recipe->group = 1;
  EXPECT_THAT(redo_shares(profile), testing::ElementsAre(0.0, testing::DoubleEq(0.1), testing::DoubleEq(0.3)));
  profile.records[2].recipe->seconds = 0.1;
  EXPECT_THAT(redo_shares(profile), testing::ElementsAre(0.0, testing::DoubleEq(0.05), testing::DoubleEq(0.15)));
}

TEST(Profile, MedianIsOfEachTime) {
  std::vector<Profile> passes(3, small());
  for (size_t i = 0; i < 3; ++i) passes[i].steps[2].at = 2 + 0.1 * static_cast<double>(i);
  passes[0].seconds = 100;
  passes[2].records[1].recipe->seconds = 7;
  passes[1].records[1].recipe.reset();
  const Profile result = *median(passes);
  EXPECT_EQ(result.steps[2].at, 2.1);
  EXPECT_EQ(result.seconds, 5);
  EXPECT_EQ(result.records[1].recipe->seconds, 0.1) << "the lower of the two that have it";
  EXPECT_EQ(result.invalid(), std::nullopt);
  EXPECT_EQ(median({}), std::nullopt);
}

TEST(Profile, MedianLeavesOutWhatDidSomethingElse) {
  std::vector<Profile> passes(3, small());
  passes[0].seconds = passes[1].seconds = 100;
  passes[0].records[0].bytes = Bytes(101);
  std::swap(passes[1].steps[3], passes[1].steps[4]);
  EXPECT_EQ(median(passes), small());
}

}  // namespace
}  // namespace ebbtide
