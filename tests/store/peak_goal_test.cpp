#include <ebbtide/store/peak_goal.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

namespace ebbtide {
namespace {

using Looks = PeakGoal::Looks;
using Manners = PeakGoal::Manners;
using Phase = PeakGoal::Phase;

/// A program whose every op needs memory of its own while it runs, and a store that holds its budget: steps of a forward
/// in which each op's result is saved, and of the backward in which they go one by one while gradients come.
struct Program {
  Bytes constant = MiB(100);   // parameters
  Bytes gradients = MiB(100);  // of all ops, made in the backward
  Bytes saved = MiB(20);       // an op
  std::vector<Bytes> scratch;  // an op, while it runs; in the backward twice as much
  Bytes optimizer;             // made at the end of the first step

  Bytes needed_without_a_store() const {
    const auto most = static_cast<int64_t>(scratch.size());
    return constant + optimizer + saved * most + *std::ranges::max_element(scratch) * 2 + gradients / most;
  }
};

/// As the framework's allocator counts.
class Counted {
 public:
  void set(Bytes now) {
    now_ = now;
    peak_ = std::max(peak_, now);
    ever_ = std::max(ever_, now);
  }
  void burst(Bytes more) {
    peak_ = std::max(peak_, now_ + more);
    ever_ = std::max(ever_, now_ + more);
  }
  MemoryUsage usage() const { return {.now = now_, .peak = peak_, .shortages = shortages}; }
  void restart() { peak_ = now_; }
  Bytes ever() const { return ever_; }
  void forget() { ever_ = now_; }
  int64_t shortages = 0;

 private:
  Bytes now_, peak_, ever_;
};

class Training {
 public:
  Training(Program program, PeakGoal& goal) : program_(std::move(program)), goal_(goal) { count(); }

  /// Returns the peak of the process.
  Bytes step() {
    counted.forget();
    ++pass_;
    const auto ops = static_cast<int64_t>(program_.scratch.size());
    for (int64_t op = 0; op < ops; ++op) {
      counted.burst(program_.scratch[static_cast<size_t>(op)] + program_.saved);
      look(Phase::kForward);
      alive_ += program_.saved;
      hold();
    }
    for (int64_t op = ops; op-- > 0;) {
      look(Phase::kBackward);
      hold();
      counted.burst(program_.scratch[static_cast<size_t>(op)] * 2);
      alive_ -= program_.saved;
      gradients_ += program_.gradients / ops;
      hold();
    }
    goal_.pass_ended(pass_, counted.usage(), {held_, alive_});
    goal_.pass_died(pass_);
    made_ = program_.optimizer;
    gradients_ = Bytes(0);
    hold();
    return counted.ever();
  }

  Counted counted;
  int looks = 0;

 private:
  void look(Phase phase) {
    const Looks wanted = goal_.looks();
    if (wanted == Looks::kNone) return;
    ++looks;
    const MemoryUsage usage = counted.usage();
    if (wanted == Looks::kRestarted) counted.restart();
    goal_.look(pass_, usage, {held_, alive_}, {phase, nullptr, nullptr});
  }
  void hold() {
    held_ = std::min(alive_, goal_.budget());
    count();
  }
  void count() { counted.set(program_.constant + made_ + gradients_ + held_); }

  const Program program_;
  PeakGoal& goal_;
  int64_t pass_ = 0;
  Bytes alive_, held_, gradients_, made_;
};

Program uneven() {
  Program program;
  for (int op = 0; op < 20; ++op) program.scratch.push_back(MiB(op == 13 ? 60 : 5));
  return program;
}

TEST(PeakGoal, IsReachedAndNotPassed) {
  const Program program = uneven();
  for (const Bytes most : {MiB(380), MiB(420), MiB(500)}) {
    ASSERT_LT(most, program.needed_without_a_store());
    PeakGoal goal(most, Manners::kPlain);
    Training training(program, goal);
    for (int step = 0; step < 5; ++step) EXPECT_LE(training.step(), most) << step;
    EXPECT_GE(training.step(), most - most / 16);
    EXPECT_LE(goal.peak().bytes, most);
  }
}

TEST(PeakGoal, LooksNoMoreOnceItHasSettled) {
  PeakGoal goal(MiB(420), Manners::kPlain);
  Training training(uneven(), goal);
  for (int step = 0; step < 6; ++step) training.step();
  const int before = training.looks;
  const Bytes budget = goal.budget();
  for (int step = 0; step < 10; ++step) training.step();
  EXPECT_EQ(training.looks - before, 10);  // one when each begins
  EXPECT_EQ(goal.budget(), budget);
}

TEST(PeakGoal, WhatFitsIsLeftAlone) {
  const Program program = uneven();
  PeakGoal goal(program.needed_without_a_store() * 3, Manners::kPlain);
  Training training(program, goal);
  for (int step = 0; step < 3; ++step) EXPECT_LE(training.step(), program.needed_without_a_store());
  EXPECT_EQ(goal.budget(), goal.most());
}

TEST(PeakGoal, AnOptimizerThatComesLaterIsMadeRoomFor) {
  Program program = uneven();
  program.optimizer = MiB(80);
  const Bytes most = MiB(500);
  PeakGoal goal(most, Manners::kPlain);
  Training training(program, goal);
  for (int step = 0; step < 6; ++step) EXPECT_LE(training.step(), most) << step;
}

TEST(PeakGoal, WhatIsLaterLargerIsFoundAndMadeRoomFor) {
  const Bytes most = MiB(460);
  PeakGoal goal(most, Manners::kPlain);
  {
    Training training(uneven(), goal);
    for (int step = 0; step < 8; ++step) training.step();
    EXPECT_EQ(goal.looks(), Looks::kUsage);  // settled
  }
  Program larger = uneven();
  larger.scratch[4] = MiB(100);
  Training training(larger, goal);
  training.step();  // is what shows it
  training.step();  // is measured
  for (int step = 0; step < 4; ++step) EXPECT_LE(training.step(), most);
}

TEST(PeakGoal, PoliteOnesRestartNoPeakWhileHalfIsFree) {
  PeakGoal goal(GiB(4), Manners::kPolite);
  Training training(uneven(), goal);
  const MemoryUsage before = training.counted.usage();
  training.counted.burst(MiB(900));
  for (int step = 0; step < 3; ++step) training.step();
  EXPECT_EQ(training.counted.usage().peak, before.now + MiB(900));
  EXPECT_EQ(goal.budget(), goal.most());
}

TEST(PeakGoal, PoliteOnesKeepWithinToo) {
  PeakGoal goal(MiB(420), Manners::kPolite);
  Training training(uneven(), goal);
  training.step();
  training.step();
  for (int step = 0; step < 4; ++step) EXPECT_LE(training.step(), MiB(420));
}

TEST(PeakGoal, AShortageTakesATwentieth) {
  PeakGoal goal(MiB(420), Manners::kPlain);
  Training training(uneven(), goal);
  for (int step = 0; step < 6; ++step) training.step();
  const Bytes before = goal.budget();
  ++training.counted.shortages;
  training.step();
  EXPECT_LE(goal.budget(), before - before / 20);
  EXPECT_EQ(goal.most(), MiB(399));
  for (int step = 0; step < 4; ++step) EXPECT_LE(training.step(), MiB(399));
}

TEST(PeakGoal, TellsWhoseThePeakIs) {
  Program program = uneven();
  PeakGoal goal(MiB(90), Manners::kPlain);  // parameters alone are more
  Training training(program, goal);
  training.step();
  EXPECT_EQ(goal.budget(), Bytes(0));
  EXPECT_GT(goal.others(), goal.most());
  EXPECT_EQ(goal.peak().saved, Bytes(0));
  EXPECT_EQ(goal.peak().moment.phase, Phase::kBackward);
  EXPECT_THAT(PeakGoal::name_of(goal.peak().moment), testing::StartsWith("in the backward"));
}

TEST(PeakGoal, AGraphThatIsKeptDoesNotStopIt) {
  PeakGoal goal(MiB(420), Manners::kPlain);
  goal.look(1000, {.now = MiB(100), .peak = MiB(100)}, {}, {Phase::kForward, nullptr, nullptr});
  Training training(uneven(), goal);
  training.step();
  for (int step = 0; step < 5; ++step) EXPECT_LE(training.step(), MiB(420));
  EXPECT_GE(training.step(), MiB(420) - MiB(420) / 16);
}

TEST(PeakGoal, APassWithoutBackwardTeachesNothing) {
  PeakGoal goal(MiB(420), Manners::kPlain);
  goal.look(1, {.now = MiB(100), .peak = MiB(100)}, {}, {Phase::kForward, nullptr, nullptr});
  const Bytes budget = goal.budget();
  goal.pass_died(1);
  goal.look(2, {.now = MiB(100), .peak = MiB(100)}, {}, {Phase::kForward, nullptr, nullptr});
  EXPECT_EQ(goal.budget(), budget);
}

}  // namespace
}  // namespace ebbtide
