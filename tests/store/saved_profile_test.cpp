// A profile's file: what goes through it unchanged, and what is refused.
#include <ebbtide/store/saved_profile.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <string>

#include "tests/store/profiles.h"

namespace ebbtide::test {
namespace {

using testing::HasSubstr;

SavedProfile small() {
  std::mt19937_64 random(5);
  SavedProfile saved{.profile = random_profile(random, 12), .recompute = false};
  saved.profile.records[0].region = "layer \"0\"";
  saved.profile.records[0].kind = ~uint64_t{0};
  saved.profile.records[1].device = 1;
  saved.profile.records[2].recipe = ProfiledRecipe{1.0 / 3, {0}, 2};
  saved.profile.records[3].recipe = ProfiledRecipe{1.0 / 7, {0}, 2};
  Conditions host{.machine = {.disk = DiskModel{2e8, 3e8, 1e-4, kComputeSecondsPerByte}},
                  .budgets = {.device = MiB(5), .host = Bytes(0), .spill = GiB(9)}};
  Conditions gpu{.machine = {.link = LinkModel{{5e10, 4e10}, {5.1e10, 4.1e10}, 1.0 / 3e5}},
                 .budgets = {.device = GiB(1)}};
  saved.devices = {{"host", host}, {"cuda:0", gpu}};
  return saved;
}

std::string why(const std::string& text) {
  const auto result = profile_from_json(text);
  return result.ok() ? "accepted" : result.failure().message;
}

std::string changed(std::string text, const std::string& from, const std::string& to) {
  const size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return text.replace(at, from.size(), to);
}

TEST(SavedProfile, GoesThroughJsonUnchanged) {
  const SavedProfile saved = small();
  const auto back = profile_from_json(to_json(saved));
  ASSERT_TRUE(back.ok()) << back.failure().message;
  EXPECT_EQ(back.value().profile, saved.profile);
  EXPECT_FALSE(back.value().recompute);
  ASSERT_EQ(back.value().devices.size(), 2u);
  EXPECT_EQ(back.value().devices[1].name, "cuda:0");
  EXPECT_EQ(back.value().devices[0].on.machine.disk->compute_s_per_byte, kComputeSecondsPerByte);
  EXPECT_EQ(back.value().devices[0].on.budgets.spill, GiB(9));
  EXPECT_FALSE(back.value().devices[0].on.machine.link);
  EXPECT_EQ(back.value().devices[1].on.machine.link->in.duplex, 4.1e10);
  EXPECT_EQ(back.value().devices[1].on.machine.link->latency_s, 1.0 / 3e5);
  EXPECT_FALSE(back.value().devices[1].on.machine.disk);
  EXPECT_EQ(to_json(back.value()), to_json(saved));
}

TEST(SavedProfile, WhatTheStoreKnewMayBeMissing) {
  const std::string text = to_json(small());
  EXPECT_EQ(why(text.substr(0, text.find(",\"store\":")) + "}"), "accepted");
  const auto newer = profile_from_json(changed(text, "\"version\":1", "\"version\":2"));
  ASSERT_TRUE(newer.ok());
  EXPECT_TRUE(newer.value().devices.empty()) << "of another version it is not read";
}

TEST(SavedProfile, WhatIsNoneIsRefused) {
  EXPECT_THAT(why(""), HasSubstr("no profile"));
  EXPECT_THAT(why("[]"), HasSubstr("no profile"));
  EXPECT_THAT(why(R"({"format": "x"})"), HasSubstr("its format is 'x', not 'ebbtide profile 1'"));
  const std::string text = to_json(small());
  EXPECT_EQ(why(text), "accepted");
  EXPECT_THAT(why(changed(text, "\"unpack\"", "\"repack\"")), HasSubstr("'repack' is unknown"));
  EXPECT_THAT(why(changed(text, "\"device\":1", "\"device\":2")), HasSubstr("device 2 is not described"));
  EXPECT_THAT(why(changed(text, "\"device\":1", "\"device\":1e300")), HasSubstr("no whole number"));
  EXPECT_THAT(why(changed(text, "\"device\":1", "\"device\":-1")), HasSubstr("out of range"));
  EXPECT_THAT(why(changed(text, "\"device\":1", "\"device\":18446744073709551615")), HasSubstr("out of range"));
  EXPECT_THAT(why(changed(text, "\"read\":300000000.0", "\"read\":0.5")), HasSubstr("less than a byte a second"));
  EXPECT_THAT(why(changed(text, "\"read\":300000000.0", "\"read\":1e400")), HasSubstr("no profile"));
  EXPECT_THAT(why(changed(text, "41000000000.0", "71000000000.0")), HasSubstr("more than the link's speed"));
  const std::string deep(1'000'000, '[');
  EXPECT_THAT(why(changed(text, "\"device\":1", "\"device\":" + deep + std::string(1'000'000, ']'))),
              HasSubstr("array is no whole number"));
}

TEST(SavedProfile, AFileThatIsNotThereIsNamedInTheSystemsWords) {
  const auto result = read_profile("/no/such/file");
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.failure().message, "No such file or directory");
  EXPECT_EQ(read_profile("/tmp").failure().message, "Is a directory");
}

TEST(SavedProfile, CutShortItIsRefused) {
  const std::string text = to_json(small());
  for (size_t size = 0; size < text.size(); ++size) ASSERT_THAT(why(text.substr(0, size)), HasSubstr("no profile"));
}

}  // namespace
}  // namespace ebbtide::test
