#include <ebbtide/store/lower_bound.h>
#include <ebbtide/store/plan.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <random>
#include <vector>

#include "tests/store/profiles.h"

namespace ebbtide::test {
namespace {

using What = ProfiledStep::What;
using testing::Each;
using enum Action;

/// What a planner may be asked, at random.
struct Question {
  Profile profile;
  Machine machine;
  Budgets budgets;

  Question(uint64_t seed, uint32_t most_records) {
    std::mt19937_64 random(seed);
    profile = random_profile(random, 1 + random() % most_records);
    if (seed % 4 == 3) {
      std::mt19937_64 groups(seed);
      profile = with_groups(std::move(profile), groups);
    }
    machine = random_machine(random);
    const auto share = [&](double low, double high) {
      const double part = std::uniform_real_distribution<>(low, high)(random);
      return Bytes(static_cast<int64_t>(part * static_cast<double>(saved(profile).count())));
    };
    budgets.device = share(0, 1.1);
    if (random() % 2) budgets.host = share(0, 1);
    if (random() % 4 == 0) budgets.spill = share(0, 1);
  }
};

/// The least time of all treatments that take no more memory than the budgets, or than `within` did.
double brute_force(const Question& question, const Simulated& within) {
  const auto& [profile, machine, budgets] = question;
  const Bytes peak = std::max(budgets.device, within.device_peak), host_peak = std::max(budgets.host, within.host_peak);
  Simulator simulator(profile, machine, budgets);
  const int treatments = machine.link && machine.disk ? 4 : 3;
  std::vector<Action> actions(profile.records.size(), kKeep);
  constexpr Action kAll[] = {kKeep, kOffload, kRecompute, kSpill};
  std::vector<int> chosen(actions.size());
  double best = std::numeric_limits<double>::infinity();
  for (size_t i = 0; i < actions.size();) {
    const Simulated result = simulator.run(actions);
    if (result.device_peak <= peak && result.host_peak <= host_peak) best = std::min(best, result.step_s);
    for (i = 0; i < actions.size(); ++i) {
      chosen[i] = (chosen[i] + 1) % treatments;
      actions[i] = kAll[chosen[i]];
      if (chosen[i] != 0) break;
    }
  }
  return best;
}

TEST(Plan, KeepsAllWithinTheBudget) {
  const Profile profile = Transformer{.layers = 2}.profile();
  const Plan result = plan(profile, Accelerator().machine(), {.device = saved(profile)});
  EXPECT_THAT(result.actions, Each(kKeep));
  EXPECT_THAT(result.why, Each(Why::kFits));
  EXPECT_DOUBLE_EQ(result.predicted.step_s, profile.seconds);
  EXPECT_TRUE(result.return_order.empty());
}

TEST(Plan, OfNothingIsNothing) {
  EXPECT_TRUE(plan({}, {}, {}).actions.empty());
}

TEST(Plan, SaysWhy) {
  Profile profile = Transformer{.layers = 8}.profile();
  profile.records[5].mobility = Mobility::kElsewhere;
  profile.records[6].mobility = Mobility::kStays;
  const Budgets budgets{.device = saved(profile) / 10, .host = saved(profile) / 20};
  Machine machine = Accelerator().machine();
  machine.disk = DiskModel{20e9, 20e9, 0, 0};
  const Plan result = plan(profile, machine, budgets);
  EXPECT_EQ(result.why[5], Why::kElsewhere);
  EXPECT_EQ(result.why[6], Why::kStays);
  const auto redone = std::ranges::find(result.actions, kRecompute) - result.actions.begin();
  EXPECT_EQ(result.why.at(static_cast<size_t>(redone)), Why::kCheaperToRedo);
  EXPECT_EQ(result.actions[0], kSpill) << "a residual, the oldest";
  EXPECT_EQ(result.why[0], Why::kHostFull);
  EXPECT_LE(result.predicted.host_peak, budgets.host);
  EXPECT_LE(result.predicted.device_peak, budgets.device);
  const Plan alone = plan(profile, {}, budgets);
  EXPECT_EQ(alone.why[1], Why::kNoLowerTier);
  EXPECT_EQ(alone.actions[0], kKeep);
}

TEST(Plan, WithoutRecomputeNothingIsRedone) {
  const Profile profile = Transformer{.layers = 4}.profile();
  const Plan result = plan(profile, Accelerator().machine(), {.device = saved(profile) / 10}, {.recompute = false});
  EXPECT_EQ(std::ranges::count(result.actions, kRecompute), 0);
  EXPECT_EQ(result.predicted.recompute_s, 0);
  EXPECT_GE(result.predicted.step_s, result.lower_bound_s);
}

TEST(Plan, WhereTheLinkIsSlowAllIsRedone) {
  const Profile profile = Transformer{.layers = 4}.profile();
  const Plan result = plan(profile, Accelerator{.link = 1e6, .duplex = 1e6}.machine(), {.device = saved(profile) / 4});
  EXPECT_LE(result.predicted.step_s, result.recompute_all_s * (1 + 1e-12));
}

/// Disks wear out.
TEST(Plan, AtEqualTimeItIsRedoneAndNotWritten) {
  Profile profile;
  for (uint32_t i = 0; i < 3; ++i) {
    profile.records.push_back({.bytes = Bytes(100), .moved = Bytes(100), .recipe = ProfiledRecipe{}});  // takes no time
    profile.steps.push_back({What::kPack, i, 10.0 * i});
  }
  for (uint32_t i = 3; i-- > 0;) {
    profile.steps.push_back({What::kUnpack, i, 60 - 10.0 * i});
    profile.steps.push_back({What::kDeath, i, 65 - 10.0 * i});
  }
  profile.seconds = 70;
  const Machine machine{.link = {}, .disk = DiskModel{1000, 1000, 0, 0}};
  const Budgets budgets{.device = Bytes(200)};
  const Plan moved = plan(profile, machine, budgets, {.recompute = false});
  ASSERT_DOUBLE_EQ(moved.predicted.step_s, 70) << "the disk is hidden, too";
  ASSERT_GT(moved.predicted.written, Bytes(0));
  const Plan result = plan(profile, machine, budgets);
  EXPECT_DOUBLE_EQ(result.predicted.step_s, 70);
  EXPECT_EQ(result.predicted.written, Bytes(0));
  EXPECT_GT(std::ranges::count(result.actions, kRecompute), 0);
}

/// Two regions, each a record that its run reads and four that it makes: a part of them takes as long as all up to its last.
TEST(Plan, WhatOneRunMakesIsWeighedTogether) {
  Question question(0, 4);
  Profile& profile = question.profile = {};
  for (uint32_t i = 0; i < 10; ++i) {
    profile.records.push_back({.bytes = Bytes(100), .moved = Bytes(100)});
    if (i % 5 != 0) profile.records[i].recipe = ProfiledRecipe{1, {i - i % 5}, i - i % 5 + 1};
    profile.steps.push_back({What::kPack, i, 1.0 * i});
  }
  for (uint32_t i = 10; i-- > 0;) {
    profile.steps.push_back({What::kUnpack, i, 30 - 2.0 * i});
    profile.steps.push_back({What::kDeath, i, 32 - 2.0 * i});
  }
  profile.seconds = 32;
  ASSERT_EQ(profile.invalid(), std::nullopt);
  int redone = 0;
  for (const double speed : {5.0, 20.0, 40.0, 80.0}) {
    for (int budget = 500; budget <= 1000; budget += 100) {
      question.machine = {.link = {}, .disk = DiskModel{speed, speed, 0, 0}};
      question.budgets = {.device = Bytes(budget)};
      const Plan result = plan(profile, question.machine, question.budgets);
      EXPECT_LE(result.predicted.step_s, brute_force(question, result.predicted) * 1.015)
          << "budget " << budget << ", speed " << speed;
      redone += std::ranges::count(result.actions, kRecompute);
    }
  }
  EXPECT_GT(redone, 0);
}

/// No worse than to run some whole layers again and to move the rest, or to keep the last.
TEST(Plan, OfManyRegionsItFindsWhichToRunAgain) {
  for (const double sigma : {0.0, 0.6}) {
    constexpr uint32_t kLayers = 24, kPerLayer = 12;
    Profile profile = Transformer{.layers = kLayers, .sigma = sigma}.profile();
    for (uint32_t i = 0; i < profile.records.size(); ++i) {
      const uint32_t input = i - i % kPerLayer;
      auto& recipe = profile.records[i].recipe;
      if (!recipe) continue;
      recipe->inputs = {input};
      recipe->group = input + 1;
    }
    ASSERT_EQ(profile.invalid(), std::nullopt);
    const Machine machine = Accelerator().machine();
    for (const int percent : {20, 30, 50, 70}) {
      const Budgets budgets{.device = saved(profile) * percent / 100};
      const Plan result = plan(profile, machine, budgets);
      EXPECT_LE(result.predicted.device_peak, budgets.device);
      Simulator simulator(profile, machine, budgets);
      double best = std::numeric_limits<double>::infinity();
      for (uint32_t redone = 0; redone <= kLayers; ++redone) {
        for (uint32_t first = 0; first + redone <= kLayers; ++first) {
          std::vector<Action> actions(profile.records.size(), kOffload);
          for (uint32_t i = first * kPerLayer; i < (first + redone) * kPerLayer; ++i)
            if (profile.records[i].recipe) actions[i] = kRecompute;
          const Simulated simulated = simulator.run(actions);
          if (simulated.device_peak <= budgets.device) best = std::min(best, simulated.step_s);
        }
      }
      EXPECT_LE(result.predicted.step_s, best) << percent << "%, sigma " << sigma;
    }
  }
}

TEST(PlanProperty, OfAFewRecordsNoTreatmentIsBetter) {
  for (uint64_t seed = 0; seed < 10000; ++seed) {
    const Question question(seed, 4);
    const Plan result = plan(question.profile, question.machine, question.budgets);
    const double best = brute_force(question, result.predicted);
    ASSERT_LE(result.predicted.step_s, best * (1 + 1e-12)) << "seed " << seed;
    ASSERT_LE(result.lower_bound_s, best * (1 + 1e-12)) << "seed " << seed;
  }
}

TEST(PlanProperty, OfMoreRecordsFewTreatmentsAreBetter) {
  int exact = 0, of = 0;
  for (uint64_t seed = 0; of < 15; ++seed) {
    const Question question(seed, 9);
    if (question.profile.records.size() < 9 || (question.machine.link && question.machine.disk)) continue;
    ++of;
    const Plan result = plan(question.profile, question.machine, question.budgets);
    const double best = brute_force(question, result.predicted);
    EXPECT_LE(result.predicted.step_s, best * 1.015) << "seed " << seed;
    exact += result.predicted.step_s <= best * (1 + 1e-12);
  }
  EXPECT_GE(exact, 10);
}

TEST(PlanProperty, ItKeepsItsWord) {
  int slowed = 0;
  for (uint64_t seed = 0; seed < 10000; ++seed) {
    const Question question(seed, 24);
    const auto& [profile, machine, budgets] = question;
    ASSERT_EQ(profile.invalid(), std::nullopt);
    const PlanOptions quick{.most_steps = 3000};
    const Plan result = plan(profile, machine, budgets, quick);
    Simulator simulator(profile, machine, budgets);
    const Simulated again = simulator.run(result.actions);
    ASSERT_EQ(again.step_s, result.predicted.step_s) << "seed " << seed;
    ASSERT_EQ(again.device_peak, result.predicted.device_peak) << "seed " << seed;
    ASSERT_EQ(simulator.return_order(), result.return_order) << "seed " << seed;
    ASSERT_GE(again.step_s, result.lower_bound_s * (1 - 1e-12)) << "seed " << seed;
    if (again.squeezed == 0) {
      ASSERT_LE(again.device_peak, budgets.device) << "seed " << seed;
      ASSERT_LE(again.host_peak, budgets.host) << "seed " << seed;
    }

    // No worse than one treatment for all.
    Bytes least_peak = saved(profile);
    for (const Action action : {kOffload, kRecompute}) {
      std::vector<Action> same(profile.records.size(), kOffload);
      for (size_t i = 0; i < same.size(); ++i)
        if (profile.records[i].recipe) same[i] = action;
      const Simulated extreme = simulator.run(same);
      if (extreme.host_peak <= budgets.host) least_peak = std::min(least_peak, extreme.device_peak);
      const Bytes peak = std::max(budgets.device, result.predicted.device_peak);
      if (extreme.device_peak > peak || extreme.host_peak > std::max(budgets.host, again.host_peak)) continue;
      ASSERT_LE(result.predicted.step_s, extreme.step_s * (1 + 1e-12)) << "seed " << seed;
    }
    ASSERT_LE(result.predicted.device_peak, std::max(budgets.device, least_peak)) << "seed " << seed;

    // On links and disks that turn out slower, or a little faster, it takes another time and no more memory.
    std::mt19937_64 random(seed);
    const double factor = std::uniform_real_distribution<>(0.3, 1.2)(random);
    const Simulated slow = Simulator(profile, faster(machine, factor), budgets).run(result.actions);
    ASSERT_LE(slow.squeezed, again.squeezed) << "seed " << seed;
    ASSERT_LE(slow.device_peak, std::max(budgets.device, again.device_peak)) << "seed " << seed;
    slowed += slow.step_s > again.step_s;
  }
  EXPECT_GT(slowed, 1000);
}

TEST(PlanProperty, MoreBudgetNeverMakesAKnownPlanSlower) {
  for (uint64_t seed = 0; seed < 300; ++seed) {
    Question question(seed, 24);
    auto& [profile, machine, budgets] = question;
    if (machine.link) machine.disk.reset();  // see SimulatorProperty
    std::vector<Action> known;
    double before = std::numeric_limits<double>::infinity();
    for (int i = 1; i <= 10; ++i) {
      budgets.device = saved(profile) * i / 10;
      const Plan result = plan(profile, machine, budgets, {.most_steps = 3000, .known = known});
      if (result.predicted.squeezed > 0) continue;
      EXPECT_LE(result.predicted.step_s, before * (1 + 1e-9)) << "seed " << seed;
      before = result.predicted.step_s;
      known = result.actions;
    }
  }
}

TEST(Plan, ComesNearTheBoundForTransformers) {
  for (const double sigma : {0.0, 0.6}) {
    for (const Accelerator& accelerator : {Accelerator(), Accelerator{2.5e14, 1.6e12, 25e9, 20e9}}) {
      const Profile profile = Transformer{.sigma = sigma, .accelerator = accelerator}.profile();
      double before = std::numeric_limits<double>::infinity();
      for (const int percent : {5, 10, 20, 40, 80, 100}) {
        const Budgets budgets{.device = saved(profile) * percent / 100};
        const Plan result = plan(profile, accelerator.machine(), budgets);
        EXPECT_LE(result.predicted.device_peak, budgets.device);
        EXPECT_LE(result.predicted.step_s, result.lower_bound_s * (sigma == 0 ? 1.02 : 1.05)) << percent << "%";
        EXPECT_LE(result.predicted.step_s, before);
        before = result.predicted.step_s;
      }
    }
  }
}

}  // namespace
}  // namespace ebbtide::test
