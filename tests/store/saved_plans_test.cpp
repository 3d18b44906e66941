// A plan's file: what goes through it unchanged, and what is refused.
#include <ebbtide/store/saved_plans.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <cstdint>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "tests/store/profiles.h"

namespace ebbtide::test {
namespace {

using testing::HasSubstr;
using testing::SizeIs;

SavedPlan random_plan(uint64_t seed, uint32_t records) {
  std::mt19937_64 random(seed);
  Profile profile = random_profile(random, records);
  const Conditions on{.machine = random_machine(random), .budgets = {.device = saved(profile) / 3}};
  SavedPlan plan{make_course(std::move(profile), {on}, true), random()};
  for (uint32_t i = 0; i < records; ++i) plan.course.prefixes.push_back(random());
  plan.course.kind = plan.course.prefixes.back();
  return plan;
}

std::string why(const std::string& text) {
  const auto result = plans_from_json(text);
  return result.ok() ? "accepted" : result.failure().message;
}

/// As if it had been written like that.
std::string sealed(std::string text) {
  const std::string name = "\"checksum\":\"";
  const size_t at = text.find(name) + name.size();
  char digits[17];
  std::snprintf(digits, sizeof digits, "%016llx",
                static_cast<unsigned long long>(XXH3_64bits(text.data() + at + 16, text.size() - at - 16)));
  return text.replace(at, 16, digits);
}

std::string changed(std::string text, const std::string& from, const std::string& to) {
  const size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return text.replace(at, from.size(), to);
}

TEST(SavedPlans, GoThroughJsonUnchanged) {
  std::vector<SavedPlan> plans;
  for (uint64_t seed = 0; seed < 40; ++seed) plans.push_back(random_plan(seed, 1 + seed % 9));
  const std::string text = to_json(plans);
  const auto back = plans_from_json(text);
  ASSERT_TRUE(back.ok()) << back.failure().message;
  ASSERT_THAT(back.value(), SizeIs(40));
  for (size_t i = 0; i < plans.size(); ++i) {
    const Course &before = plans[i].course, &after = back.value()[i].course;
    EXPECT_EQ(after.kind, before.kind);
    EXPECT_EQ(after.prefixes, before.prefixes);
    EXPECT_EQ(after.profile, before.profile);
    EXPECT_EQ(after.plans[0].actions, before.plans[0].actions);
    EXPECT_EQ(after.plans[0].why, before.plans[0].why);
    EXPECT_EQ(after.plans[0].return_order, before.plans[0].return_order);
    EXPECT_EQ(after.predicted_s, before.predicted_s);
    EXPECT_EQ(after.recomputes, before.recomputes);
    EXPECT_EQ(after.on[0].budgets.device, before.on[0].budgets.device);
    EXPECT_EQ(back.value()[i].then, plans[i].then);
  }
  EXPECT_EQ(to_json(back.value()), text);
  EXPECT_EQ(sealed(text), text);
  EXPECT_THAT(plans_from_json(to_json(std::vector<SavedPlan>())).value(), SizeIs(0));
}

TEST(SavedPlans, AForeignFileIsRefused) {
  EXPECT_EQ(why(""), "it is no plan of ebbtide");
  EXPECT_EQ(why("{\"format\":\"ebbtide profile 1\"}"), "it is no plan of ebbtide");
  const std::string text = to_json({random_plan(1, 4)});
  EXPECT_THAT(why(changed(text, "plan 1", "plan 2")), HasSubstr("of another version than 1, which this ebbtide reads"));
  EXPECT_THAT(why(text + " "), HasSubstr("cut short or changed"));
}

TEST(SavedPlans, CutShortOrChangedTheyAreRefused) {
  const std::string text = to_json({random_plan(1, 4)});
  for (size_t size = 0; size < text.size(); ++size) ASSERT_NE(why(text.substr(0, size)), "accepted") << size;
  std::mt19937_64 random(3);
  for (size_t at = 0; at < text.size(); ++at) {
    std::string other = text;
    other[at] = static_cast<char>(other[at] ^ (1 + random() % 255));
    ASSERT_NE(why(other), "accepted") << "byte " << at;
  }
}

TEST(SavedPlans, WhatMakesNoSenseIsRefusedThoughItsChecksumIsRight) {
  const SavedPlan plan = random_plan(2, 4);
  const std::string text = to_json({plan});
  const auto why_if = [&](const std::string& from, const std::string& to) {
    return why(sealed(changed(text, from, to)));
  };
  EXPECT_EQ(why(sealed(text)), "accepted");
  EXPECT_THAT(why_if("\"actions\":\"", "\"actions\":\"k"), HasSubstr("not for each of its records"));
  EXPECT_THAT(why_if("\"why\":[", "\"why\":[8,"), HasSubstr("not for each of its records"));
  EXPECT_THAT(why_if("\"kind\":" + std::to_string(plan.course.kind) + ",\"pre", "\"kind\":1,\"pre"),
              HasSubstr("not that of its records"));
  EXPECT_THAT(why_if("\"device\":0", "\"device\":1"), HasSubstr("a record's device has no plan"));
  EXPECT_THAT(why_if("\"device_budget\":", "\"device_budget\":-"), HasSubstr("out of range"));
  EXPECT_THAT(why_if("\"kinds\":[", "\"kinds\":[{},"), HasSubstr("no plan"));
  EXPECT_THAT(why_if("\"kinds\":[", "\"kinds\":[" + std::string(500'000, '[')), HasSubstr("no plan"));
  std::string letters = text;
  letters[letters.find("\"actions\":\"") + 11] = 'x';
  EXPECT_THAT(why(sealed(letters)), HasSubstr("an action is unknown"));
}

// What still reads as a plan can be held within any budget, and written again.
TEST(SavedPlansProperty, WhateverIsReadCanBeFollowed) {
  int accepted = 0;
  for (uint64_t seed = 0; seed < 3000; ++seed) {
    std::mt19937_64 random(seed);
    std::string text = to_json({random_plan(seed % 20, 1 + seed % 7)});
    const size_t first = text.find("\"kinds\"");
    for (uint64_t many = 1 + random() % 4; many > 0; --many) {
      char& changed = text[first + random() % (text.size() - first)];
      const bool digit = changed >= '0' && changed <= '9';
      changed = digit          ? static_cast<char>('0' + random() % 10)
                : random() % 2 ? changed
                               : static_cast<char>(random() % 256);
    }
    const auto read = plans_from_json(sealed(text));
    if (!read.ok()) continue;
    ASSERT_THAT(read.value(), SizeIs(1));
    ++accepted;
    for (const SavedPlan& plan : read.value()) {
      Conditions on = plan.course.on[0];
      on.budgets.device = Bytes(static_cast<int64_t>(random() % 500));
      const Course held = held_within(plan.course, {on}, random() % 2);
      ASSERT_EQ(held.plans[0].actions.size(), plan.course.profile.records.size());
      for (const uint32_t record : held.plans[0].return_order) ASSERT_LT(record, plan.course.profile.records.size());
    }
    ASSERT_TRUE(plans_from_json(to_json(read.value())).ok()) << "seed " << seed;
  }
  EXPECT_GT(accepted, 100);
}

TEST(HeldWithin, OfWhatIsTooMuchTheOldestGoes) {
  const Profile profile = Transformer{.layers = 4}.profile();
  const Conditions on{.machine = Accelerator().machine(), .budgets = {.device = saved(profile) / 2}};
  const Course course = make_course(profile, {on}, true);
  for (const int percent : {60, 40, 20, 5, 0}) {
    Conditions less = on;
    less.budgets.device = saved(profile) * percent / 100;
    const Course held = held_within(course, {less}, true);
    Bytes kept;
    bool same = true;
    for (size_t i = 0; i < profile.records.size(); ++i) {
      if (held.action(i) == Action::kKeep) kept += profile.records[i].bytes;
      same = same && held.action(i) == course.action(i);
    }
    EXPECT_LE(kept, less.budgets.device) << percent;
    EXPECT_EQ(held.on[0].budgets.device, less.budgets.device);
    if (percent >= 50) {
      EXPECT_TRUE(same);
      EXPECT_EQ(held.predicted_s, course.predicted_s);
    }
    EXPECT_GE(held.predicted_s, held.lower_bound_s);
  }
}

TEST(HeldWithin, AStoreThatRunsNothingAgainMovesItInstead) {
  const Profile profile = Transformer{.layers = 4}.profile();
  const Conditions on{.machine = Accelerator().machine(), .budgets = {.device = saved(profile) / 10}};
  const Course course = make_course(profile, {on}, true);
  EXPECT_TRUE(course.recomputes);
  const Course held = held_within(course, {on}, false);
  EXPECT_FALSE(held.recomputes);
  EXPECT_EQ(held.plans[0].predicted.recompute_s, 0);
}

}  // namespace
}  // namespace ebbtide::test
