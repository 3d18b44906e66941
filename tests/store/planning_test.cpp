// Passes that repeat, on a store with a real spill tier: what is learned of them, and what the plan changes.
#include <ebbtide/store/error.h>
#include <ebbtide/store/store_core.h>
#include <ebbtide/store/text_file.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <tests/store/fake_storage.h>

#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "tests/store/device_trainer.h"

namespace ebbtide::test {
namespace {

constexpr size_t kSize = 64 << 10;
constexpr Bytes kBytes{kSize};

class PlanningTest : public testing::Test {
 protected:
  PlanningTest()
      : folder_(std::filesystem::temp_directory_path() / ("ebbtide-planning-" + std::to_string(::getpid()))) {
    std::filesystem::create_directories(folder_);
  }
  ~PlanningTest() override { std::filesystem::remove_all(folder_); }

  std::shared_ptr<StoreCore> open(std::variant<Bytes, Share> device_budget, const std::string& plan = "") const {
    Options options;
    options.device_budget = device_budget;
    options.plan = plan;
    options.spill_to = {folder_.string()};
    options.host_budget = MiB(8);
    options.min_bytes = KiB(4);
    return StoreCore::open(options);
  }

  /// Packs tensors of these sizes, asks for them in this order, and lets each go.
  void step(StoreCore& core, const std::vector<size_t>& sizes, const std::vector<size_t>& order, bool bounded = true) {
    std::shared_ptr<Pass> pass;
    std::vector<std::shared_ptr<Record>> records;
    std::vector<std::vector<std::byte>> bytes;
    for (size_t size : sizes) {
      Memory memory(size);
      memory.fill(seed_++);
      bytes.push_back(copy(memory));
      records.push_back(pack(core, pass, memory));
    }
    core.scope_ended(pass);
    if (bounded) {
      EXPECT_LE(core.stats().device.bytes, core.stats().device.budget_bytes);
    }
    const int task = ++tasks_;
    for (size_t i : order) {
      (void)core.task_began(*records[i], task);
      EXPECT_EQ(copy(*unpack(core, *records[i])), bytes[i]) << "record " << i;
      if (after_unpack_) after_unpack_(i);
      records[i].reset();
    }
    core.task_ended(*pass, task);
  }

  /// What a store that has learned such steps would save.
  std::string saved_plan(Bytes device_budget, const std::vector<size_t>& sizes) {
    auto core = open(device_budget);
    for (int i = 0; i < 4; ++i) step(*core, sizes, downwards(sizes.size()));
    return save(core->plans_in_force());
  }
  std::string save(const std::vector<SavedPlan>& plans) const {
    const std::string path = (folder_ / "plan.json").string();
    EXPECT_TRUE(write_text_file(path, to_json(plans)).ok());
    return path;
  }

  static std::vector<size_t> upwards(size_t n) {
    std::vector<size_t> order(n);
    std::iota(order.begin(), order.end(), size_t{0});
    return order;
  }
  static std::vector<size_t> downwards(size_t n) {
    std::vector<size_t> order = upwards(n);
    std::ranges::reverse(order);
    return order;
  }

  std::filesystem::path folder_;
  uint64_t seed_ = 1;
  int tasks_ = 0;
  std::function<void(size_t)> after_unpack_;
};

TEST_F(PlanningTest, TheSecondPassIsPlannedForAndTheThirdFollows) {
  auto core = open(kBytes * 4);
  const std::vector<size_t> sizes(16, kSize);
  step(*core, sizes, downwards(16));
  EXPECT_EQ(core->stats().plans, 0);
  EXPECT_EQ(core->stats().predicted_step_s, 0);
  EXPECT_GT(core->stats().measured_step_s, 0);
  step(*core, sizes, downwards(16));
  EXPECT_EQ(core->stats().plans, 1);
  EXPECT_EQ(core->stats().predicted_step_s, 0) << "nothing has followed it yet";
  step(*core, sizes, downwards(16));
  EXPECT_GT(core->stats().predicted_step_s, 0);
  EXPECT_LE(core->stats().lower_bound_step_s, core->stats().predicted_step_s);
  step(*core, sizes, downwards(16));
  EXPECT_EQ(core->stats().plans, 2) << "a better one, of three passes";
  for (int i = 0; i < 4; ++i) step(*core, sizes, downwards(16));
  const Stats stats = core->stats();
  EXPECT_LE(stats.device.peak_bytes, kBytes * 5) << "the budget, and what one thread unpacks";
  EXPECT_EQ(stats.predicted_peak_bytes, kBytes * 4);
  EXPECT_EQ(stats.measured_peak_bytes, kBytes * 4);
  EXPECT_THAT(core->report(), testing::HasSubstr("and to hold " + to_string(kBytes * 4) + " at most, and held " +
                                                 to_string(kBytes * 4)));
  EXPECT_EQ(stats.kept.tensors + stats.spilled.tensors, 8 * 16);
  EXPECT_GE(stats.spilled.tensors, 8 * 11);
}

TEST_F(PlanningTest, AShareOfWhatIsSavedIsPlannedForToo) {
  // In the first pass it is not known yet, and the pass fits.
  auto core = open(Share{0.25});
  for (int i = 0; i < 6; ++i) step(*core, std::vector<size_t>(16, kSize), downwards(16), /*bounded=*/i > 1);
  EXPECT_EQ(core->stats().device.budget_bytes, kBytes * 4);
  EXPECT_EQ(core->plan().size(), 16u);
}

TEST_F(PlanningTest, NothingIsPlannedForWhatFits) {
  auto core = open(MiB(4));
  for (int i = 0; i < 6; ++i) step(*core, std::vector<size_t>(16, kSize), downwards(16));
  EXPECT_EQ(core->stats().plans, 0);
  EXPECT_EQ(core->stats().kept.tensors, 6 * 16);
}

TEST_F(PlanningTest, AnOrderThatIsNotTheReverseStaysWithinTheBudget) {
  auto core = open(kBytes * 4);
  const std::vector<size_t> sizes(16, kSize);
  for (int i = 0; i < 4; ++i) step(*core, sizes, upwards(16));
  std::vector<Bytes> held;
  after_unpack_ = [&](size_t) { held.push_back(core->stats().device.bytes); };
  step(*core, sizes, upwards(16));
  ASSERT_EQ(held.size(), 16u);
  EXPECT_THAT(held, testing::Each(testing::Le(kBytes * 5)));
  EXPECT_EQ(core->plan().size(), 16u);
}

TEST_F(PlanningTest, PassesOfTwoKindsHaveAPlanEach) {
  auto core = open(kBytes * 4);
  const std::vector<size_t> train(12, kSize);
  std::vector<size_t> longer(12, kSize);
  longer.resize(20, 2 * kSize);
  for (int i = 0; i < 4; ++i) {
    step(*core, train, downwards(12));
    step(*core, longer, downwards(20));
  }
  EXPECT_EQ(core->stats().plans, 4);
  step(*core, train, downwards(12));
  EXPECT_EQ(core->plan().size(), 12u);
  step(*core, longer, downwards(20));
  EXPECT_EQ(core->plan().size(), 20u) << "begins like the other, and is told from it when it goes on";
}

TEST_F(PlanningTest, APassThatLeavesThePlanGoesOnWithoutIt) {
  auto core = open(kBytes * 4);
  const std::vector<size_t> sizes(16, kSize);
  for (int i = 0; i < 4; ++i) step(*core, sizes, downwards(16));
  std::vector<size_t> other = sizes;
  for (size_t i = 5; i < 16; ++i) other[i] = 3 * kSize;
  step(*core, other, downwards(16));
  EXPECT_TRUE(core->plan().empty());
  EXPECT_EQ(core->stats().predicted_step_s, 0);
  step(*core, sizes, downwards(16));
  EXPECT_EQ(core->plan().size(), 16u);
  // Another order than the plan's costs time at most.
  step(*core, sizes, upwards(16));
}

TEST_F(PlanningTest, APassThatStopsHalfWayLeavesNothingBehind) {
  auto core = open(kBytes * 4);
  const std::vector<size_t> sizes(16, kSize);
  for (int i = 0; i < 4; ++i) step(*core, sizes, downwards(16));
  {
    std::shared_ptr<Pass> pass;
    std::vector<std::shared_ptr<Record>> records;
    for (int i = 0; i < 9; ++i) {
      Memory memory(kSize);
      memory.fill(7);
      records.push_back(pack(*core, pass, memory));
    }
    core->scope_ended(pass);
    (void)core->task_began(*records.back(), 99);
    (void)unpack(*core, *records.back());
    core->task_ended(*pass, 99);
  }
  EXPECT_EQ(core->stats().device.bytes, Bytes(0));
  step(*core, sizes, downwards(16));
  EXPECT_EQ(core->plan().size(), 16u);
}

TEST_F(PlanningTest, SeveralPassesAtOnceStayWithinTheBudget) {
  auto core = open(kBytes * 6);
  const std::vector<size_t> sizes(12, kSize);
  for (int i = 0; i < 4; ++i) step(*core, sizes, downwards(12));
  std::vector<std::shared_ptr<Pass>> passes(3);
  std::vector<std::vector<std::shared_ptr<Record>>> records(3);
  for (size_t p = 0; p < 3; ++p) {
    for (size_t i = 0; i < 12; ++i) {
      Memory memory(kSize);
      memory.fill(100 * p + i);
      records[p].push_back(pack(*core, passes[p], memory));
    }
    core->scope_ended(passes[p]);
    EXPECT_LE(core->stats().device.bytes, kBytes * 6);
  }
  for (size_t p = 0; p < 3; ++p) {
    for (size_t i = 12; i-- > 0;) {
      (void)core->task_began(*records[p][i], static_cast<int>(p) + 1);
      Memory expected(kSize);
      expected.fill(100 * p + i);
      EXPECT_EQ(copy(*unpack(*core, *records[p][i])), copy(expected));
      records[p][i].reset();
    }
    core->task_ended(*passes[p], static_cast<int>(p) + 1);
  }
  EXPECT_EQ(core->stats().device.bytes, Bytes(0));
}

TEST_F(PlanningTest, AFrozenPlanIsFollowedFromTheFirstPassOn) {
  const std::vector<size_t> sizes(16, kSize);
  auto learned = open(kBytes * 4);
  for (int i = 0; i < 5; ++i) step(*learned, sizes, downwards(16));
  auto core = open(kBytes * 4, save(learned->plans_in_force()));
  for (int i = 0; i < 6; ++i) {
    step(*core, sizes, downwards(16));
    const auto before = learned->plan(), after = core->plan();
    ASSERT_EQ(after.size(), 16u) << "pass " << i;
    for (size_t r = 0; r < 16; ++r) EXPECT_EQ(after[r].action, before[r].action);
    EXPECT_EQ(core->last_pass().kept.tensors, learned->last_pass().kept.tensors);
    EXPECT_EQ(core->last_pass().spilled.tensors, learned->last_pass().spilled.tensors);
  }
  EXPECT_EQ(core->stats().plans, 0);
  EXPECT_GT(core->stats().predicted_step_s, 0);
  EXPECT_THAT(core->report(),
              testing::HasSubstr("the plan is frozen, from " + (folder_ / "plan.json").string() + "\n"));
}

TEST_F(PlanningTest, WhatAFrozenPlanDoesNotKnowGoesWithoutOne) {
  const std::string file = saved_plan(kBytes * 4, std::vector<size_t>(16, kSize));
  auto core = open(kBytes * 4, file);
  for (int i = 0; i < 6; ++i) step(*core, std::vector<size_t>(12, 2 * kSize), downwards(12));
  EXPECT_TRUE(core->plan().empty());
  EXPECT_EQ(core->stats().plans, 0);
  EXPECT_THAT(core->report(), testing::HasSubstr("followed none"));
  step(*core, std::vector<size_t>(16, kSize), upwards(16));
  EXPECT_EQ(core->plan().size(), 16u);
}

TEST_F(PlanningTest, AFrozenPlanStaysWithinASmallerBudget) {
  const std::vector<size_t> sizes(16, kSize);
  const std::string file = saved_plan(kBytes * 8, sizes);
  for (const Bytes budget : {kBytes * 3, kBytes / 2, Bytes(0)}) {
    auto core = open(budget, file);
    for (int i = 0; i < 3; ++i) step(*core, sizes, downwards(16));  // looks at the budget
    const Stats stats = core->stats();
    EXPECT_LE(stats.device.peak_bytes, budget + kBytes) << "and what one thread unpacks";
    EXPECT_EQ(core->plan().size(), 16u);
    EXPECT_LE(stats.kept.tensors, 3 * budget.count() / static_cast<int64_t>(kSize));
  }
}

TEST_F(PlanningTest, AFrozenPlanTellsWhatAShareComesTo) {
  const std::vector<size_t> sizes(16, kSize);
  const std::string file = saved_plan(kBytes * 4, sizes);
  auto core = open(Share{0.25}, file);
  EXPECT_EQ(core->stats().device.budget_bytes, kBytes * 4) << "before the first pass";
  step(*core, sizes, downwards(16));
  EXPECT_EQ(core->stats().device.budget_bytes, kBytes * 4);
  EXPECT_EQ(core->plan().size(), 16u);
}

TEST_F(PlanningTest, AnotherStoresPlanIsFollowedFromTheNextPassOn) {
  const std::vector<size_t> sizes(16, kSize);
  auto leads = open(kBytes * 4);
  for (int i = 0; i < 5; ++i) step(*leads, sizes, downwards(16));
  for (const Bytes budget : {kBytes * 4, kBytes * 2}) {
    auto core = open(budget);
    step(*core, sizes, downwards(16));
    core->follow(plans_from_json(to_json(leads->plans_in_force())).value());
    for (int i = 0; i < 6; ++i) step(*core, sizes, downwards(16));
    const auto before = leads->plan(), after = core->plan();
    ASSERT_EQ(after.size(), 16u);
    for (size_t r = 0; r < 16; ++r) {
      if (after[r].action != before[r].action) {
        EXPECT_LT(budget, kBytes * 4) << "only for want of room";
      }
    }
    EXPECT_EQ(core->stats().plans, 1) << "none of its own";
    EXPECT_LE(core->stats().device.peak_bytes, budget + kBytes) << "and what one thread unpacks";
    for (int i = 0; i < 4; ++i) step(*core, std::vector<size_t>(12, 2 * kSize), downwards(12));
    EXPECT_EQ(core->plan().size(), 12u) << "what the other store does not know";
  }
}

TEST_F(PlanningTest, AFrozenPlanIsNotGivenUpForAnotherStores) {
  const std::vector<size_t> sizes(16, kSize);
  auto leads = open(kBytes * 4);
  for (int i = 0; i < 5; ++i) step(*leads, sizes, downwards(16));
  auto core = open(kBytes * 4, saved_plan(kBytes * 4, std::vector<size_t>(12, 2 * kSize)));
  core->follow(leads->plans_in_force());
  for (int i = 0; i < 3; ++i) step(*core, sizes, downwards(16));
  EXPECT_TRUE(core->plan().empty());
}

TEST_F(PlanningTest, AFileThatIsNoPlanIsAnErrorThatNamesIt) {
  const std::string file = saved_plan(kBytes * 4, std::vector<size_t>(16, kSize));
  const auto error_of = [&](const std::string& path) -> std::string {
    try {
      (void)open(kBytes, path);
    } catch (const ConfigError& error) {
      return error.what();
    }
    return "none";
  };
  EXPECT_EQ(error_of(file), "none");
  EXPECT_EQ(
      error_of("/no/such/plan"),
      "plan='/no/such/plan' is not valid: accepted is a file that save_plan wrote, and this one cannot be read: No "
      "such file or directory");
  const std::string text = read_text_file(file).value();
  EXPECT_TRUE(write_text_file(file, text.substr(0, text.size() / 2)).ok());
  EXPECT_THAT(error_of(file), testing::HasSubstr("it was cut short or changed after it was written"));
  EXPECT_TRUE(write_text_file(file, "{}").ok());
  EXPECT_THAT(error_of(file), testing::HasSubstr("save_plan wrote, and it is no plan of ebbtide"));
}

// Actions that cannot be, orders that are not the backward's: they cost time, and no byte changes.
TEST_F(PlanningTest, AFrozenPlanOfNonsenseHarmsNothing) {
  const std::vector<size_t> sizes{kSize, 2 * kSize, kSize / 2, kSize, 3 * kSize, kSize, kSize, 2 * kSize};
  auto learned = open(kBytes * 4);
  for (int i = 0; i < 4; ++i) step(*learned, sizes, downwards(8));
  const std::vector<SavedPlan> plans = learned->plans_in_force();
  ASSERT_EQ(plans.size(), 1u);
  std::mt19937_64 random(7);
  for (int round = 0; round < 40; ++round) {
    std::vector<SavedPlan> nonsense = plans;
    Course& course = nonsense[0].course;
    for (Action& action : course.plans[0].actions)
      if (random() % 2) action = static_cast<Action>(random() % 4);
    for (ProfiledRecord& record : course.profile.records) {
      if (random() % 4 == 0) record.mobility = static_cast<Mobility>(random() % 3);
      if (random() % 4 == 0) record.bytes = record.moved = Bytes(static_cast<int64_t>(random() % (8 * kSize)));
    }
    for (int swaps = static_cast<int>(random() % 6); swaps > 0; --swaps) {
      auto& steps = course.profile.steps;
      std::swap(steps[random() % steps.size()].record, steps[random() % steps.size()].record);
    }
    if (course.profile.invalid()) course.profile = plans[0].course.profile;
    course.on[0].budgets.device = Bytes(static_cast<int64_t>(random() % (16 * kSize)));
    auto core = open(kBytes * static_cast<int64_t>(random() % 6), save(nonsense));
    for (int i = 0; i < 2; ++i) step(*core, sizes, i == 0 ? downwards(8) : upwards(8));
    EXPECT_EQ(core->stats().device.bytes, Bytes(0));
    EXPECT_EQ(core->plan().size(), 8u);
  }
}

TEST_F(PlanningTest, NothingIsPlannedBeforeALinkIsKnownBothWays) {
  Options options;
  options.device_budget = kBytes * 4;
  options.host_budget = MiB(8);
  options.min_bytes = KiB(4);
  const auto core = StoreCore::open(options);
  core->plan_for_accelerators(true);
  DeviceTrainer trainer(*core, {.pace = Pace::kEager}, {.own_thread = false});
  for (int task = 1; task < 5; ++task) {  // backwards that ask for the last tensor, which is there still
    std::shared_ptr<Pass> pass;
    std::vector<DeviceTrainer::Saved> saved;
    for (uint64_t i = 0; i < 16; ++i) saved.push_back(trainer.save(pass, i, kSize));
    core->scope_ended(pass);
    EXPECT_TRUE(core->task_began(*saved.back().record, task));
    (void)trainer.use(saved.back());
    saved.clear();
    core->task_ended(*pass, task);
  }
  EXPECT_GT(core->stats().d2h.bytes, Bytes(0));
  EXPECT_EQ(core->stats().h2d.bytes, Bytes(0));
  EXPECT_EQ(core->stats().plans, 0);
}

}  // namespace
}  // namespace ebbtide::test
