// What is learned of passes, from logs with times of the test's own.
#include <ebbtide/store/planner.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <optional>
#include <utility>
#include <vector>

namespace ebbtide::test {
namespace {

using namespace std::chrono_literals;

/// Packs, one a millisecond, and asks for all in reverse, `each` apart.
PassLog log_of(const std::vector<Bytes>& sizes, std::chrono::microseconds each = 2ms, uint32_t dtype = 6) {
  PassLog log;
  PassLog::Time now{};
  for (const Bytes size : sizes) log.pack({.bytes = size, .moved = size, .dtype = dtype, .op = "4Some"}, now += 1ms);
  for (auto i = static_cast<uint32_t>(sizes.size()); i-- > 0;) {
    log.unpack(i, now += each);
    log.death(i, now);
  }
  log.end(now);
  return log;
}

double seconds_of(const PassLog& log) {
  return log.profile().seconds;
}

class PlannerTest : public testing::Test {
 protected:
  static std::vector<Conditions> conditions(Bytes budget, double disk = 1e9) {
    return {{.machine = {.disk = DiskModel{.write = disk, .read = disk}}, .budgets = {.device = budget}}};
  }

  /// A pass ends; what it gives to plan is planned and adopted. Whether it was.
  bool passes(const PassLog& log, std::vector<Conditions> on = conditions(MiB(4)),
              std::optional<double> seconds = std::nullopt, double copying_s = 0) {
    const auto followed = planner_.find(log.prefix(), log.records());
    const auto task = planner_.ended({.log = log,
                                      .seconds = seconds.value_or(followed ? followed->predicted_s : seconds_of(log)),
                                      .followed = followed.get(),
                                      .on = std::move(on),
                                      .copying_s = copying_s,
                                      .crowded = true});
    if (task) planner_.adopt(*task, task->run());
    return task.has_value();
  }

  const std::vector<Bytes> sizes_ = std::vector<Bytes>(12, MiB(1));
  const PassLog log_ = log_of(sizes_);
  Planner planner_{/*recompute=*/true};
};

TEST_F(PlannerTest, TheSecondPassGivesAPlanAndTheFourthABetterOne) {
  EXPECT_FALSE(passes(log_));
  EXPECT_EQ(planner_.find(log_.prefix(), 12), nullptr);
  EXPECT_TRUE(passes(log_));
  EXPECT_NE(planner_.find(log_.prefix(), 12), nullptr);
  EXPECT_FALSE(passes(log_));
  EXPECT_TRUE(passes(log_));
  for (int i = 0; i < 50; ++i) EXPECT_FALSE(passes(log_)) << "as predicted";
  EXPECT_EQ(planner_.plans(), 2);
}

TEST_F(PlannerTest, WhatIsWantedBackComesInTheOrderThatWasSeen) {
  PassLog log;
  PassLog::Time now{};
  for (const Bytes size : sizes_) log.pack({.bytes = size, .moved = size}, now += 1ms);
  const std::vector<uint32_t> order{7, 0, 3, 11, 1, 9, 2, 10, 4, 8, 5, 6};
  for (const uint32_t i : order) {
    log.unpack(i, now += 2ms);
    log.death(i, now);
  }
  log.end(now);
  passes(log);
  passes(log);
  const auto course = planner_.find(log.prefix(), 12);
  ASSERT_NE(course, nullptr);
  std::vector<uint32_t> wanted;
  for (const uint32_t i : order)
    if (course->action(i) != Action::kKeep) wanted.push_back(i);
  EXPECT_GE(wanted.size(), 8u) << "of 12 MiB, 4 may stay";
  EXPECT_EQ(course->plans[0].return_order, wanted);
}

TEST_F(PlannerTest, WhatFitsIsNotPlannedFor) {
  for (int i = 0; i < 5; ++i) {
    const auto task = planner_.ended({.log = log_, .on = conditions(MiB(64)), .crowded = false});
    EXPECT_FALSE(task.has_value());
  }
}

TEST_F(PlannerTest, ThePlanIsFoundFromTheFirstPackOn) {
  passes(log_);
  passes(log_);
  const auto prefixes = log_.prefixes();
  ASSERT_EQ(prefixes.size(), 12u);
  for (size_t packs = 1; packs <= 12; ++packs) EXPECT_NE(planner_.find(prefixes[packs - 1], packs), nullptr);
  EXPECT_EQ(planner_.find(prefixes[3], 5), nullptr);
  EXPECT_EQ(planner_.find(log_of(sizes_, 2ms, /*dtype=*/7).prefix(), 12), nullptr) << "another dtype";
  std::vector<Bytes> longer = sizes_;
  longer.push_back(MiB(1));
  EXPECT_EQ(planner_.find(log_of(longer).prefix(), 13), nullptr);
}

TEST_F(PlannerTest, SizesThatDifferByLittleAreOfOneKind) {
  EXPECT_EQ(log_of({Bytes(1'000'000)}).prefix(), log_of({Bytes(1'010'000)}).prefix());
  EXPECT_NE(log_of({Bytes(1'000'000)}).prefix(), log_of({Bytes(1'200'000)}).prefix());
  EXPECT_NE(log_of({Bytes(3)}).prefix(), log_of({Bytes(4)}).prefix());
}

TEST_F(PlannerTest, ATimeThatIsOffForLongIsPlannedForAgainAndEverMoreSeldom) {
  for (int i = 0; i < 4; ++i) passes(log_);
  std::vector<int> replanned;
  for (int i = 0; i < 60; ++i)
    if (passes(log_, conditions(MiB(4)), 10.0)) replanned.push_back(i);
  EXPECT_THAT(replanned, testing::ElementsAre(2, 8, 20, 44)) << "after 3 in a row, then 6, 12, 24";
  EXPECT_FALSE(passes(log_)) << "one that is as predicted";
}

// At the scope's end the budget has to hold what a plan keeps, though a backward that came at once would free it in time.
TEST_F(PlannerTest, WhatIsKeptFitsTheBudget) {
  PassLog log = log_of({MiB(1), MiB(1), MiB(1)}, 1us);
  const std::vector<uint32_t> inputs{0};
  log.set_recipe(1, 0.001, inputs);
  for (const Bytes budget : {Bytes(0), KiB(512), MiB(1), MiB(2.5)}) {
    Planner planner{true};
    std::shared_ptr<const Course> course;
    for (int i = 0; i < 2; ++i)
      if (const auto task = planner.ended({.log = log, .seconds = 1, .on = conditions(budget), .crowded = true}))
        course = task->run();
    ASSERT_NE(course, nullptr);
    Bytes kept;
    for (size_t i = 0; i < 3; ++i)
      if (course->action(i) == Action::kKeep) kept += MiB(1);
    EXPECT_LE(kept, budget);
  }
}

TEST_F(PlannerTest, WhatARunMakesIsTimedByTheFirstRun) {
  PassLog log = log_of({MiB(1), MiB(2), MiB(1), MiB(3)});
  const std::vector<uint32_t> inputs{0};
  for (const uint32_t record : {1, 3}) log.set_recipe(record, 7, inputs, /*group=*/99);
  log.set_recipe(2, 7, inputs, /*group=*/98);
  log.forget_recipe(2);
  const Profile profile = log.profile();
  ASSERT_EQ(profile.invalid(), std::nullopt);
  EXPECT_EQ(profile.records[1].recipe->group, 1u);
  EXPECT_NEAR(profile.records[1].recipe->seconds, 0.001, 1e-9);
  EXPECT_EQ(profile.records[3].recipe->group, 1u);
  EXPECT_NEAR(profile.records[3].recipe->seconds, 0.002, 1e-9) << "with what was packed between them";
  EXPECT_FALSE(profile.records[2].recipe);
}

TEST_F(PlannerTest, AnotherBudgetIsPlannedForAtOnce) {
  for (int i = 0; i < 4; ++i) passes(log_);
  EXPECT_TRUE(passes(log_, conditions(MiB(8))));
  EXPECT_FALSE(passes(log_, conditions(MiB(8))));
}

TEST_F(PlannerTest, AnotherSpeedOfTheDiskIsPlannedForWhenItLasts) {
  for (int i = 0; i < 4; ++i) passes(log_);
  EXPECT_FALSE(passes(log_, conditions(MiB(4), 0.5e9)));
  EXPECT_FALSE(passes(log_, conditions(MiB(4), 0.5e9)));
  EXPECT_TRUE(passes(log_, conditions(MiB(4), 0.5e9)));
  EXPECT_FALSE(passes(log_, conditions(MiB(4), 0.5e9)));
}

TEST_F(PlannerTest, WhatTransfersTookIsNoPartOfTheComputation) {
  passes(log_, conditions(MiB(4)), std::nullopt, 0.009);
  passes(log_, conditions(MiB(4)), std::nullopt, 0.009);
  ASSERT_NE(planner_.last_profile(), nullptr);
  EXPECT_NEAR(planner_.last_profile()->seconds, seconds_of(log_) - 0.009, 1e-9);
}

// A pass that follows a plan looks for no recipe that the plan does not use: the next plan still knows of them.
TEST_F(PlannerTest, RecipesOnceFoundStayKnown) {
  PassLog with = log_of(sizes_);
  const std::vector<uint32_t> inputs{2};
  with.set_recipe(3, 0.001, inputs);
  passes(with);
  passes(with);
  passes(log_);
  EXPECT_TRUE(passes(log_));
  const auto course = planner_.find(log_.prefix(), 12);
  ASSERT_NE(course, nullptr);
  EXPECT_TRUE(course->profile.records[3].recipe.has_value());
}

TEST_F(PlannerTest, OfTwoThatBeginAlikeTheOneThatIsDueIsFollowed) {
  std::vector<Bytes> longer = sizes_;
  longer.resize(20, MiB(2));
  const PassLog long_log = log_of(longer);
  for (int i = 0; i < 4; ++i) {
    passes(log_);
    passes(long_log);
  }
  const auto prefixes = log_.prefixes();
  EXPECT_EQ(planner_.find(prefixes[0], 1)->prefixes.size(), 12u);
  passes(log_);
  EXPECT_EQ(planner_.find(prefixes[0], 1)->prefixes.size(), 20u);
  EXPECT_EQ(planner_.plans(), 4);
}

TEST_F(PlannerTest, TheKindSeenLongestAgoIsForgotten) {
  passes(log_);
  passes(log_);
  for (int64_t i = 2; i < 10; ++i) {
    const PassLog other = log_of(std::vector<Bytes>(8, Bytes(i * (1 << 20))));
    passes(other);
    passes(other);
  }
  EXPECT_EQ(planner_.find(log_.prefix(), 12), nullptr);
}

TEST_F(PlannerTest, PausesAreNoComputation) {
  PassLog log;
  PassLog::Time now{};
  log.pack({.bytes = MiB(1), .moved = MiB(1)}, now);
  log.pause(0.010);
  log.pack({.bytes = MiB(1), .moved = MiB(1)}, now += 12ms);
  log.pause(0.050);  // of two threads: more than passes
  log.unpack(1, now += 5ms);
  log.unpack(0, now += 5ms);
  log.end(now);
  const Profile profile = log.profile();
  EXPECT_FALSE(profile.invalid().has_value());
  EXPECT_NEAR(profile.steps[1].at, 0.002, 1e-9);
  EXPECT_NEAR(profile.steps[2].at, 0.002, 1e-9) << "times never fall";
}

TEST_F(PlannerTest, StepsOfSeveralDevicesAreInOrderOfTheirTimes) {
  PassLog log;
  for (const uint32_t device : {1u, 1u, 2u, 0u}) log.pack({.bytes = MiB(1), .moved = MiB(1), .device = device}, {});
  for (const uint32_t i : {0u, 2u, 3u, 1u}) {
    log.unpack(i, {});
    log.death(i, {});
  }
  log.end({});
  // Of device 1 what it was asked for first; device 2 did its part meanwhile. Deaths, and device 0, have no times.
  const std::vector<std::pair<size_t, double>> times{{0, 1}, {1, 4}, {2, 2}, {4, 6}, {6, 5}, {10, 7}};
  log.retime(times, 8);
  const Profile profile = log.profile();
  EXPECT_EQ(profile.invalid(), std::nullopt);
  EXPECT_EQ(profile.seconds, 8);
  std::vector<std::pair<uint32_t, double>> in_order;
  for (const ProfiledStep& step : profile.steps) in_order.emplace_back(step.record, step.at);
  const std::vector<std::pair<uint32_t, double>> expected{{0, 1}, {2, 2}, {1, 4}, {3, 4}, {2, 5}, {2, 5},
                                                          {0, 6}, {0, 6}, {3, 6}, {3, 6}, {1, 7}, {1, 7}};
  EXPECT_EQ(in_order, expected);
}

TEST_F(PlannerTest, ALogForAnotherPassBeginsAnew) {
  PassLog log = log_of(sizes_);
  log.clear();
  EXPECT_EQ(log.records(), 0u);
  EXPECT_FALSE(log.has_backward());
  PassLog::Time now{};
  log.pack({.bytes = MiB(1), .moved = MiB(1), .dtype = 6}, now);
  EXPECT_EQ(log.prefix(), log_.prefixes()[0]);
  EXPECT_EQ(log.profile().records.size(), 1u);
}

/// What a planner has in force after a few passes, as a store that is to follow it reads it.
class FrozenPlannerTest : public PlannerTest {
 protected:
  FrozenPlannerTest() {
    for (int i = 0; i < 4; ++i) passes(log_);
    auto read = plans_from_json(to_json(planner_.in_force()));
    EXPECT_TRUE(read.ok());
    frozen_.freeze(std::move(read).value());
    frozen_.hold_within(conditions(MiB(4)));
  }

  /// Whether something is to be worked out anew.
  bool frozen_passes(const PassLog& log, Bytes budget) {
    const auto followed = frozen_.find(log.prefix(), log.records());
    const auto task = frozen_.ended(
        {.log = log, .seconds = 99, .followed = followed.get(), .on = conditions(budget), .crowded = true});
    if (task) frozen_.adopt(*task, task->run());
    return task.has_value();
  }
  static Bytes kept(const Course& course) {
    Bytes sum;
    for (size_t i = 0; i < course.profile.records.size(); ++i)
      if (course.action(i) == Action::kKeep) sum += course.profile.records[i].bytes;
    return sum;
  }

  Planner frozen_{/*recompute=*/true};
};

TEST_F(FrozenPlannerTest, TheSamePlanIsThereBeforeTheFirstPass) {
  const auto course = planner_.find(log_.prefix(), 12), read = frozen_.find(log_.prefix(), 12);
  ASSERT_NE(read, nullptr);
  EXPECT_EQ(read->prefixes, course->prefixes);
  EXPECT_EQ(read->plans[0].actions, course->plans[0].actions);
  EXPECT_EQ(read->plans[0].why, course->plans[0].why);
  EXPECT_EQ(read->plans[0].return_order, course->plans[0].return_order);
  EXPECT_EQ(read->predicted_s, course->predicted_s);
  EXPECT_EQ(read->lower_bound_s, course->lower_bound_s);
  EXPECT_EQ(read->recomputes, course->recomputes);
}

TEST_F(FrozenPlannerTest, NothingIsPlannedAgain) {
  for (int i = 0; i < 20; ++i) EXPECT_FALSE(frozen_passes(log_, MiB(4))) << "however long passes take";
  EXPECT_NE(frozen_.last(), nullptr);
  EXPECT_FALSE(frozen_.wants(*frozen_.last()));
  const PassLog other = log_of({MiB(3), MiB(3), MiB(3)});
  for (int i = 0; i < 9; ++i) EXPECT_FALSE(frozen_passes(other, MiB(4)));
  EXPECT_EQ(frozen_.find(other.prefix(), 3), nullptr) << "what the file does not know goes without a plan";
  EXPECT_EQ(frozen_.last(), nullptr);
  EXPECT_EQ(frozen_.plans(), 0);
}

TEST_F(FrozenPlannerTest, AnotherBudgetIsHeldAndThePlanComesBackWithItsOwn) {
  const Bytes planned = kept(*frozen_.find(log_.prefix(), 12));
  EXPECT_GT(planned, MiB(1));
  EXPECT_TRUE(frozen_passes(log_, MiB(1)));
  EXPECT_LE(kept(*frozen_.find(log_.prefix(), 12)), MiB(1));
  EXPECT_FALSE(frozen_passes(log_, MiB(1)));
  EXPECT_TRUE(frozen_passes(log_, MiB(64)));
  EXPECT_EQ(kept(*frozen_.find(log_.prefix(), 12)), planned);
  EXPECT_EQ(frozen_.plans(), 0);
}

/// Its plans come from another store, for a part of what it does.
class SharedPlannerTest : public PlannerTest {
 protected:
  void receive(Planner& here, Bytes budget) {
    auto plans = plans_from_json(to_json(planner_.in_force())).value();
    std::vector<std::shared_ptr<const Course>> held;
    for (const SavedPlan& plan : plans)
      held.push_back(std::make_shared<const Course>(held_within(plan.course, conditions(budget), true)));
    here.share(std::move(plans), std::move(held));
  }
  /// Of a planner that gets plans: what is to be worked out after a pass.
  static std::optional<Planner::Task> ended(Planner& here, const PassLog& log, Bytes budget) {
    const auto followed = here.find(log.prefix(), log.records());
    return here.ended(
        {.log = log, .seconds = 99, .followed = followed.get(), .on = conditions(budget), .crowded = true});
  }
};

TEST_F(SharedPlannerTest, AnotherStoresPlanIsFollowedAndNoneIsMade) {
  for (int i = 0; i < 4; ++i) passes(log_);
  Planner here(true);
  receive(here, MiB(4));
  const auto course = here.find(log_.prefix(), 12);
  ASSERT_NE(course, nullptr);
  EXPECT_EQ(course->plans[0].actions, planner_.find(log_.prefix(), 12)->plans[0].actions);
  for (int i = 0; i < 9; ++i) EXPECT_FALSE(ended(here, log_, MiB(4))) << "however long passes take";
  EXPECT_EQ(here.last(), course);
  here.look_again();
  EXPECT_FALSE(here.wants(*course));
  EXPECT_EQ(here.plans(), 1);
}

TEST_F(SharedPlannerTest, ItIsHeldWithinThisStoresBudget) {
  for (int i = 0; i < 4; ++i) passes(log_);
  Planner here(true);
  receive(here, MiB(1));
  const auto kept = [&] {
    const auto course = here.find(log_.prefix(), 12);
    int64_t count = 0;
    for (size_t i = 0; i < 12; ++i) count += course->action(i) == Action::kKeep;
    return count;
  };
  EXPECT_LE(kept(), 1);
  const auto task = ended(here, log_, MiB(4));
  ASSERT_TRUE(task) << "there is more now";
  here.adopt(*task, task->run());
  EXPECT_GT(kept(), 1);
}

TEST_F(SharedPlannerTest, WhatItDoesNotKnowIsPlannedForHere) {
  for (int i = 0; i < 4; ++i) passes(log_);
  Planner here(true);
  receive(here, MiB(4));
  const PassLog other = log_of({MiB(3), MiB(3), MiB(3)});
  EXPECT_FALSE(ended(here, other, MiB(4)));
  EXPECT_TRUE(ended(here, other, MiB(4)));
}

TEST_F(SharedPlannerTest, AnOwnPlanThatComesLaterIsNotAdopted) {
  for (int i = 0; i < 4; ++i) passes(log_);
  Planner here(true);
  (void)ended(here, log_, MiB(4));
  const auto own = ended(here, log_, MiB(4));
  ASSERT_TRUE(own);
  receive(here, MiB(4));
  const auto course = here.find(log_.prefix(), 12);
  here.adopt(*own, own->run());
  EXPECT_EQ(here.find(log_.prefix(), 12), course);
}

TEST_F(FrozenPlannerTest, KindsFollowOneAnotherAsBefore) {
  std::vector<Bytes> longer = sizes_;
  longer.resize(20, MiB(2));
  const PassLog long_log = log_of(longer);
  Planner before(true);
  for (int i = 0; i < 8; ++i) {
    const PassLog& log = i % 2 == 0 ? log_ : long_log;
    if (const auto task = before.ended({.log = log, .seconds = 1, .on = conditions(MiB(4)), .crowded = true}))
      before.adopt(*task, task->run());
  }
  Planner after(true);
  after.freeze(plans_from_json(to_json(before.in_force())).value());
  const uint64_t first = log_.prefixes()[0];
  EXPECT_EQ(after.find(first, 1)->kind, before.find(first, 1)->kind);
  for (const PassLog* log : {&log_, &long_log, &log_}) {
    EXPECT_EQ(after.find(first, 1)->kind, log->prefix()) << "of two that begin alike the one that is due";
    const auto followed = after.find(log->prefix(), log->records());
    (void)after.ended({.log = *log, .seconds = 1, .followed = followed.get(), .on = conditions(MiB(4))});
  }
}

}  // namespace
}  // namespace ebbtide::test
