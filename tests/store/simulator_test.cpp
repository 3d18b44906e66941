#include <ebbtide/store/lane_model.h>
#include <ebbtide/store/simulator.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "tests/store/profiles.h"

namespace ebbtide::test {
namespace {

using What = ProfiledStep::What;
using testing::ElementsAre;
using enum Action;

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

Machine with_link(double speed) {
  return {.link = LinkModel{{speed, speed}, {speed, speed}, 0}, .disk = {}};
}

Simulated run(const Profile& profile, const Machine& machine, const Budgets& budgets, std::vector<Action> actions) {
  return Simulator(profile, machine, budgets).run(actions);
}

TEST(Simulator, AFastLinkCostsNothing) {
  Simulator simulator(chain(10), with_link(1000), {.device = Bytes(300)});
  const Simulated result = simulator.run(std::vector(10, kOffload));
  EXPECT_DOUBLE_EQ(result.step_s, 30);
  EXPECT_EQ(result.device_peak, Bytes(300));
  EXPECT_EQ(result.moved_out, Bytes(1000));
  EXPECT_EQ(result.moved_in, Bytes(700)) << "the last three never left";
  EXPECT_EQ(result.squeezed, 0);
  EXPECT_EQ(result.host_peak, Bytes(1000));
  std::vector<Action> became(7, kOffload);
  became.resize(10, kKeep);
  EXPECT_EQ(simulator.became(), became);
}

TEST(Simulator, ASlowLinkIsWaitedForBothWays) {
  // 0 leaves from 0 s to 4 s; 2 finds room at 4 s instead of 2 s. 0 comes back from 7 s, when 2 has died, to 11 s, and is
  // wanted at 9 s.
  const Simulated result = run(chain(3), with_link(25), {.device = Bytes(200)}, {kOffload, kOffload, kOffload});
  EXPECT_DOUBLE_EQ(result.stall_s, 4);
  EXPECT_DOUBLE_EQ(result.step_s, 13);
  EXPECT_EQ(result.device_peak, Bytes(200));
}

TEST(Simulator, ARedoTakesItsTimeAndNeedsItsInputsFirst) {
  Profile profile = chain(4);
  profile.records[2].recipe = ProfiledRecipe{0.5, {1}};
  profile.records[1].recipe = ProfiledRecipe{0.25, {0}};
  Simulator simulator(profile, with_link(1000), {.device = Bytes(300)});
  const Simulated result = simulator.run(std::vector{kOffload, kRecompute, kRecompute, kKeep});
  EXPECT_DOUBLE_EQ(result.recompute_s, 0.75);
  EXPECT_DOUBLE_EQ(result.step_s, 12.75);
  EXPECT_DOUBLE_EQ(result.stall_s, 0);
  EXPECT_EQ(result.device_peak, Bytes(300));
  EXPECT_THAT(simulator.became(), ElementsAre(kKeep, kRecompute, kRecompute, kKeep)) << "0 never had to leave";
  EXPECT_THAT(simulator.return_order(), ElementsAre(0, 1, 2));
}

/// Records 1 to 3 are made from 0 by one run.
Profile chain_of_a_region() {
  Profile profile = chain(4);
  profile.records[1].recipe = ProfiledRecipe{0.25, {0}, 1};
  profile.records[2].recipe = ProfiledRecipe{0.5, {0}, 1};
  profile.records[3].recipe = ProfiledRecipe{1, {0}, 1};
  return profile;
}

TEST(Simulator, WhatOneRunMakesIsThereAtOnceAndTakesAsLongAsTheLastOfIt) {
  Simulator simulator(chain_of_a_region(), with_link(1000), {.device = Bytes(400)});
  const auto run = [&](std::vector<Action> actions) { return simulator.run(actions); };
  const Simulated all = run({kKeep, kRecompute, kRecompute, kRecompute});
  EXPECT_DOUBLE_EQ(all.recompute_s, 1.75);
  EXPECT_DOUBLE_EQ(all.step_s, 13.75);
  EXPECT_EQ(all.device_peak, Bytes(400)) << "3 is wanted, and 1 and 2 come with it";
  EXPECT_EQ(all.squeezed, 0);
  EXPECT_THAT(simulator.return_order(), ElementsAre(3, 1, 2));
  EXPECT_DOUBLE_EQ(run({kKeep, kRecompute, kRecompute, kKeep}).recompute_s, 0.75);
  EXPECT_DOUBLE_EQ(run({kKeep, kRecompute, kOffload, kKeep}).recompute_s, 0.25);
  const Simulated last = run({kKeep, kKeep, kKeep, kRecompute});
  EXPECT_DOUBLE_EQ(last.recompute_s, 1.75) << "the run has to come as far";
  EXPECT_DOUBLE_EQ(run({kKeep, kRecompute, kRecompute, kRecompute}).step_s, 13.75) << "as the first time";
}

TEST(Simulator, WhatIsNoLongerAskedForIsNotMadeWithTheOthers) {
  Profile profile = chain_of_a_region();
  std::erase_if(profile.steps, [](const ProfiledStep& step) { return step.record == 3 && step.what != What::kPack; });
  profile.steps.insert(profile.steps.begin() + 4, {What::kDeath, 3, 3.5});
  ASSERT_EQ(profile.invalid(), std::nullopt);
  const Simulated result =
      run(profile, with_link(1000), {.device = Bytes(400)}, {kKeep, kRecompute, kRecompute, kRecompute});
  EXPECT_DOUBLE_EQ(result.recompute_s, 0.75);
  EXPECT_EQ(result.device_peak, Bytes(300));
}

TEST(Simulator, AnInputLivesUntilItsRedo) {
  // 1 is asked for and dies first; 0, which is made of it, is redone afterwards.
  Profile profile;
  profile.records.assign(3, {.bytes = Bytes(100), .moved = Bytes(100)});
  profile.records[0].recipe = ProfiledRecipe{1, {1}};
  profile.steps = {{What::kPack, 0, 0},   {What::kPack, 1, 1},  {What::kPack, 2, 2},  {What::kUnpack, 2, 3},
                   {What::kUnpack, 1, 4}, {What::kDeath, 1, 5}, {What::kDeath, 2, 5}, {What::kUnpack, 0, 6}};
  profile.seconds = 7;
  const Simulated result = run(profile, {}, {.device = Bytes(200)}, {kRecompute, kKeep, kKeep});
  EXPECT_DOUBLE_EQ(result.step_s, 8);
  EXPECT_EQ(result.device_peak, Bytes(200)) << "2 has died by then, and 1 has not";
  profile.steps.erase(profile.steps.begin() + 6);
  EXPECT_EQ(run(profile, {}, {.device = Bytes(200)}, {kRecompute, kKeep, kKeep}).device_peak, Bytes(300));
}

TEST(Simulator, RedosAndFetchesAreGivenMemoryInTheOrderInWhichTheyAreNeeded) {
  // 2 is redone before 1 and 0 come back: were they fetched first, there would be no room for it.
  Profile profile = chain(4);
  profile.records[2].recipe = ProfiledRecipe{1, {}};
  const Simulated result =
      run(profile, with_link(1000), {.device = Bytes(100)}, {kOffload, kOffload, kRecompute, kOffload});
  EXPECT_EQ(result.squeezed, 0);
  EXPECT_EQ(result.device_peak, Bytes(100));
}

TEST(Simulator, WhatIsPackedInTheBackwardIsNotWantedBefore) {
  Profile profile = chain(2);
  profile.records.push_back({.bytes = Bytes(100), .moved = Bytes(100)});
  profile.steps.insert(profile.steps.end() - 1, {{What::kPack, 2, 5}, {What::kUnpack, 2, 5}});
  ASSERT_EQ(profile.invalid(), std::nullopt);
  const Simulated result = run(profile, with_link(1000), {.device = Bytes(200)}, std::vector(3, kOffload));
  EXPECT_EQ(result.moved_in, Bytes(0));
  EXPECT_EQ(result.squeezed, 0);
}

TEST(Simulator, WhatIsPackedInTheBackwardComesBackTheSame) {
  // A double backward: 1 makes room for 2, and is wanted after it.
  Profile profile;
  profile.records.assign(3, {.bytes = Bytes(100), .moved = Bytes(100)});
  profile.steps = {{What::kPack, 0, 0}, {What::kUnpack, 0, 1}, {What::kDeath, 0, 2}, {What::kPack, 1, 2},
                   {What::kPack, 2, 3}, {What::kUnpack, 2, 4}, {What::kDeath, 2, 5}, {What::kUnpack, 1, 6}};
  profile.seconds = 7;
  ASSERT_EQ(profile.invalid(), std::nullopt);
  const Simulated result = run(profile, with_link(1000), {.device = Bytes(100)}, std::vector(3, kOffload));
  EXPECT_EQ(result.moved_in, Bytes(100));
  EXPECT_EQ(result.device_peak, Bytes(100));
  EXPECT_EQ(result.squeezed, 0);
}

TEST(Simulator, WithoutRoomBelowItStays) {
  const Simulated result =
      run(chain(3), with_link(1000), {.device = Bytes(100), .host = Bytes(100)}, std::vector(3, kOffload));
  EXPECT_EQ(result.moved_out, Bytes(100));
  EXPECT_EQ(result.device_peak, Bytes(200));
  EXPECT_GT(result.squeezed, 0);
}

TEST(Simulator, WhatSinksGoesThroughHostMemory) {
  Machine machine = with_link(1000);
  machine.disk = DiskModel{200, 200, 0, 0};
  const Simulated result = run(chain(10), machine, {.device = Bytes(200), .host = Bytes(300)}, std::vector(10, kSpill));
  EXPECT_EQ(result.squeezed, 0);
  EXPECT_EQ(result.host_peak, Bytes(300)) << "what is read ahead";
  EXPECT_EQ(result.written, Bytes(1000));
  EXPECT_EQ(result.read, Bytes(800));
  EXPECT_DOUBLE_EQ(result.stall_s, 0);
  const Simulated slow = [&] {
    machine.disk = DiskModel{50, 200, 0, 0};
    return run(chain(10), machine, {.device = Bytes(200), .host = Bytes(300)}, std::vector(10, kSpill));
  }();
  EXPECT_GT(slow.stall_s, 0) << "the disk takes 2 s for what comes each second, and host memory holds three";
  EXPECT_EQ(slow.device_peak, Bytes(200));
  const Simulated no_room =
      run(chain(10), machine, {.device = Bytes(200), .host = Bytes(300), .spill = Bytes(0)}, std::vector(10, kSpill));
  EXPECT_EQ(no_room.written, Bytes(0));
  EXPECT_EQ(no_room.device_peak, Bytes(1000));
}

TEST(Simulator, WhatNeverArrivesIsWaitedForForEver) {
  Machine machine = with_link(1000);
  machine.disk = DiskModel{200, 0, 0, 0};
  const Simulated result = run(chain(10), machine, {.device = Bytes(200), .host = Bytes(300)}, std::vector(10, kSpill));
  EXPECT_FALSE(std::isfinite(result.step_s));
}

TEST(Simulator, CopiesOfHostTensorsTakeFromTheComputation) {
  const Machine machine{.link = {}, .disk = DiskModel{1000, 1000, 0, 0.001}};
  const Simulated result = run(chain(3), machine, {.device = Bytes(200)}, {kOffload, kKeep, kKeep});
  EXPECT_DOUBLE_EQ(result.copying_s, 0.2) << "100 bytes out and in";
  EXPECT_DOUBLE_EQ(result.step_s, 9.2);
  EXPECT_EQ(result.written, Bytes(100));
  EXPECT_EQ(result.moved_out, Bytes(0));
  EXPECT_EQ(result.host_peak, Bytes(0));
}

TEST(Simulator, OthersRecordsDoNotCount) {
  Profile profile = chain(4);
  profile.records[0].device = 1;
  profile.records[1].mobility = Mobility::kElsewhere;
  profile.records[2].mobility = Mobility::kStays;
  const Simulated result = run(profile, with_link(1000), {.device = Bytes(0)}, std::vector(4, kOffload));
  EXPECT_EQ(result.moved_out, Bytes(100));
  EXPECT_EQ(result.device_peak, Bytes(200));
}

TEST(LaneModel, OneWayAtATimeIsFast) {
  LaneModel lane({100, 50}, {200, 50}, 0.5);
  const double out = lane.push_out(1, 100);
  EXPECT_DOUBLE_EQ(lane.end(out), 2.5);
  EXPECT_DOUBLE_EQ(lane.push_in(2.5, 200), 4);
  EXPECT_DOUBLE_EQ(lane.end(out), 2.5);
}

TEST(LaneModel, BothWaysSlowEachOther) {
  LaneModel lane({100, 50}, {200, 50}, 0);
  const double out = lane.push_out(0, 400);
  EXPECT_DOUBLE_EQ(lane.end(out), 4);
  EXPECT_DOUBLE_EQ(lane.push_in(1, 100), 3) << "at 50 a second";
  EXPECT_DOUBLE_EQ(lane.end(out), 5) << "two seconds at half its speed";
  EXPECT_DOUBLE_EQ(lane.push_in(4, 150), 5.5) << "50 in the second that both have, 100 at 200 a second";
}

TEST(SimulatorProperty, MoreMemoryOrSpeedNeverTakesLonger) {
  int fitted = 0, slower_without = 0;
  for (uint64_t seed = 0; seed < 10000; ++seed) {
    std::mt19937_64 random(seed);
    const Profile profile = random_profile(random, 1 + random() % 24);
    ASSERT_EQ(profile.invalid(), std::nullopt);
    Machine machine = random_machine(random);
    if (machine.link) machine.disk.reset();  // where host memory fills up, what is dropped later is read later
    const auto between = [&](double low, double high) { return std::uniform_real_distribution<>(low, high)(random); };
    const auto share = [&](double of) {
      return Bytes(static_cast<int64_t>(of * static_cast<double>(saved(profile).count())));
    };
    const Budgets budgets{.device = share(between(0, 1))};
    std::vector<Action> actions(profile.records.size());
    for (Action& action : actions) action = static_cast<Action>(random() % 4);
    Simulator simulator(profile, machine, budgets);
    const Simulated base = simulator.run(actions);
    const std::vector<Action> became = simulator.became();
    Budgets more = budgets;
    more.device = Bytes(static_cast<int64_t>(static_cast<double>(budgets.device.count()) * between(1, 1.5)));
    const double rounding = 1e-9 * base.step_s;
    EXPECT_NEAR(base.step_s, profile.seconds + base.stall_s + base.recompute_s + base.copying_s, rounding);
    if (base.squeezed > 0) continue;  // what was taken over the budget was not waited for
    ++fitted;
    EXPECT_LE(base.device_peak, budgets.device);
    EXPECT_LE(run(profile, machine, more, actions).step_s, base.step_s + rounding) << "seed " << seed;
    Simulator faster_one(profile, faster(machine, between(1, 2)), budgets);
    const Simulated fast = faster_one.run(actions);
    if (faster_one.became() != became) continue;  // a slow link may spare a record its way out and back
    EXPECT_LE(fast.step_s, base.step_s + rounding) << "seed " << seed;
    slower_without += fast.step_s < base.step_s - rounding;
  }
  EXPECT_GT(fitted, 1000);
  EXPECT_GT(slower_without, 1000);
}

}  // namespace
}  // namespace ebbtide::test
