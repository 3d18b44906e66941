#include <ebbtide/store/course.h>
#include <ebbtide/store/error.h>
#include <ebbtide/store/what_if.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>

#include "tests/store/profiles.h"

namespace ebbtide::test {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::ThrowsMessage;

/// Of CPU tensors on a disk that takes what the forward makes.
SavedProfile on_host() {
  SavedProfile saved{.profile = Transformer{.layers = 4, .accelerator = {.flops = 1e12, .memory = 1e10}}.profile()};
  const Conditions on{.machine = {.disk = DiskModel{1e9, 1e9, 0, kComputeSecondsPerByte}},
                      .budgets = {.device = test::saved(saved.profile) / 5, .host = Bytes(0), .spill = TiB(1)}};
  saved.devices = {{"host", on}};
  return saved;
}

/// The same on an accelerator.
SavedProfile on_accelerator() {
  SavedProfile saved{.profile = Transformer{.layers = 4}.profile()};
  for (ProfiledRecord& record : saved.profile.records) record.device = 1;
  const Conditions on{.machine = Accelerator().machine(), .budgets = {.device = GiB(1), .host = GiB(64)}};
  saved.devices = {{"host", {}}, {"cuda:0", on}};
  return saved;
}

Options with_budget(std::variant<Bytes, Share> budget) {
  Options options;
  options.device_budget = budget;
  return options;
}

TEST(WhatIf, IsThePlanThatTheStoreWouldMake) {
  const SavedProfile saved = on_host();
  const WhatIf answer = what_if(saved, {});
  const Course course = make_course(saved.profile, {saved.devices[0].on}, true);
  EXPECT_EQ(answer.seconds, course.predicted_s);
  EXPECT_EQ(answer.lower_bound_s, course.lower_bound_s);
  ASSERT_EQ(answer.records.size(), saved.profile.records.size());
  for (size_t i = 0; i < answer.records.size(); ++i) {
    EXPECT_EQ(answer.records[i].action, to_string(course.action(i)));
    EXPECT_EQ(answer.records[i].device, "host");
  }
  ASSERT_EQ(answer.devices.size(), 1u);
  EXPECT_EQ(answer.devices[0].budget, saved.devices[0].on.budgets.device);
  EXPECT_EQ(answer.devices[0].peak, course.plans[0].predicted.device_peak);
  EXPECT_EQ(answer.spill_peak, course.plans[0].predicted.written);
  EXPECT_GT(answer.spill_peak, Bytes(0));
  EXPECT_EQ(answer.devices[0].over, Bytes(0));
  EXPECT_NEAR(answer.seconds, answer.compute_s + answer.stall_s + answer.recompute_s + answer.copying_s, 1e-9);
}

TEST(WhatIf, LessBudgetTakesLessMemoryAndMoreTime) {
  const SavedProfile saved = on_host();
  double before = 0;
  for (const double share : {1.0, 0.75, 0.5, 0.3, 0.2, 0.1, 0.05}) {
    const WhatIf answer = what_if(saved, with_budget(Share{share}));
    EXPECT_LE(answer.devices[0].peak, answer.devices[0].budget);
    EXPECT_GE(answer.seconds, before);
    EXPECT_GE(answer.seconds, answer.lower_bound_s);
    EXPECT_EQ(answer.devices[0].over, Bytes(0));
    before = answer.seconds;
  }
  const WhatIf all = what_if(saved, with_budget(Share{1}));
  EXPECT_EQ(all.seconds, all.compute_s);
  EXPECT_GT(before, all.seconds);
}

TEST(WhatIf, WithNothingBelowItSaysWhatIsTooMuch) {
  SavedProfile saved = on_host();
  saved.devices[0].on.machine.disk.reset();
  saved.devices[0].on.budgets.spill = Bytes(0);
  const WhatIf answer = what_if(saved, with_budget(Bytes(0)));
  Bytes residuals;  // without recipes
  for (const ProfiledRecord& record : saved.profile.records)
    if (!record.recipe) residuals += record.bytes;
  EXPECT_GE(answer.devices[0].over, residuals);
  const WhatIf with_disk = what_if(saved, with_budget(Bytes(0)), {.disk_write = 1e9});
  EXPECT_EQ(with_disk.devices[0].over, Bytes(0));
  EXPECT_GT(with_disk.copying_s, 0) << "of the same cores";
}

TEST(WhatIf, ASpillBudgetIsHeld) {
  Options options = with_budget(Share{0.1});
  options.recompute = false;
  const SavedProfile saved = on_host();
  EXPECT_GT(what_if(saved, options).spill_peak, GiB(1));
  options.spill_budget = GiB(1);
  const WhatIf answer = what_if(saved, options);
  EXPECT_LE(answer.spill_peak, GiB(1));
  EXPECT_GT(answer.devices[0].over, Bytes(0));
}

TEST(WhatIf, WithoutRecomputeNothingIsRunAgain) {
  Options options = with_budget(Share{0.1});
  options.recompute = false;
  const WhatIf without = what_if(on_host(), options);
  EXPECT_EQ(without.recompute_s, 0);
  EXPECT_GT(without.seconds, what_if(on_host(), with_budget(Share{0.1})).seconds);
  SavedProfile saved = on_host();
  saved.recompute = false;
  EXPECT_EQ(what_if(saved, with_budget(Share{0.1})).seconds, without.seconds) << "as the profile's store";
}

TEST(WhatIf, SpeedsAreThoseGiven) {
  const SavedProfile saved = on_accelerator();
  const Options tenth = with_budget(Share{0.1});
  const WhatIf as_measured = what_if(saved, tenth);
  EXPECT_EQ(what_if(saved, tenth, {.link_bandwidth = Accelerator().link}).seconds, as_measured.seconds)
      << "both ways at once they lose what was measured";
  EXPECT_GT(what_if(saved, tenth, {.link_bandwidth = 5e9}).seconds, as_measured.seconds);
  EXPECT_LE(as_measured.host_peak, GiB(64));
  EXPECT_GT(as_measured.host_peak, Bytes(0));
  EXPECT_EQ(as_measured.spill_peak, Bytes(0));
  Options little_host = tenth;
  little_host.host_budget = as_measured.host_peak / 4;
  little_host.recompute = false;
  const WhatIf spilled = what_if(saved, little_host, {.disk_read = 2e10});
  EXPECT_LE(spilled.host_peak, *little_host.host_budget);
  EXPECT_GT(spilled.spill_peak, Bytes(0));
  EXPECT_EQ(spilled.copying_s, 0) << "an accelerator computes with other cores";
}

TEST(WhatIf, AProfileThatKnowsNoMachineNeedsOne) {
  SavedProfile saved = on_host();
  saved.devices.clear();
  EXPECT_EQ(what_if(saved, {}).seconds, saved.profile.seconds) << "no budget: all stays";
  EXPECT_GT(what_if(saved, with_budget(Bytes(0))).devices[0].over, Bytes(0));
  const WhatIf answer = what_if(saved, with_budget(Share{0.1}), {.disk_write = 1e9, .disk_read = 2e9});
  EXPECT_EQ(answer.devices[0].over, Bytes(0));
  EXPECT_EQ(answer.devices[0].name, "device 0");
  EXPECT_THAT([&] { (void)what_if(saved, {}, {.link_bandwidth = 1e9}); },
              ThrowsMessage<ConfigError>(HasSubstr("link_bandwidth: there is no link")));
}

TEST(WhatIf, OfNothingIsNothing) {
  const WhatIf answer = what_if({}, with_budget(Share{0.5}), {.disk_write = 1e9});
  EXPECT_EQ(answer.seconds, 0);
  EXPECT_TRUE(answer.devices.empty());
}

TEST(SetSpeed, TakesWhatPeopleWriteAndNamesTheRest) {
  Speeds speeds;
  set_speed(speeds, "link_bandwidth", "25GB/s");
  set_speed(speeds, "disk_write", "1GiB");
  set_speed(speeds, "disk_read", "3.5GB/s");
  EXPECT_EQ(speeds.link_bandwidth, 25e9);
  EXPECT_EQ(speeds.disk_write, 1024.0 * 1024 * 1024);
  EXPECT_EQ(speeds.disk_read, 3.5e9);
  for (const char* text : {"", "/s", "fast", "0", "-1GB/s", "1GB/h"})
    EXPECT_THAT(
        [&] { set_speed(speeds, "disk_write", text); },
        ThrowsMessage<ConfigError>(AllOf(HasSubstr("disk_write='" + std::string(text) + "'"), HasSubstr("GB/s"))));
  EXPECT_THAT([&] { set_speed(speeds, "disk", "1"); }, ThrowsMessage<ConfigError>(HasSubstr("disk_read")));
}

// Whatever a file says that is accepted, an answer comes.
TEST(WhatIfProperty, AnswersWhateverIsAsked) {
  for (uint64_t seed = 0; seed < 2000; ++seed) {
    std::mt19937_64 random(seed);
    SavedProfile saved{.profile = random_profile(random, 1 + random() % 12)};
    if (random() % 2) {
      saved.devices.resize(2);
      for (auto& device : saved.devices) device.on.machine = random_machine(random);
      saved.devices[0].on.machine.link.reset();
      for (ProfiledRecord& record : saved.profile.records)
        if (record.recipe && record.recipe->inputs.empty()) record.device = random() % 2;
    }
    Options options = with_budget(Bytes(static_cast<int64_t>(random() % 1000)));
    if (random() % 2) options.host_budget = Bytes(static_cast<int64_t>(random() % 1000));
    if (random() % 2) options.spill_budget = Bytes(static_cast<int64_t>(random() % 1000));
    Speeds speeds;
    if (random() % 2) speeds.disk_write = 1 + static_cast<double>(random() % 1000);
    if (saved.devices.size() == 2 && random() % 2) speeds.link_bandwidth = 1 + static_cast<double>(random() % 1000);
    const WhatIf answer = what_if(saved, options, speeds);
    ASSERT_GE(answer.seconds, answer.compute_s) << "seed " << seed;
    ASSERT_GE(answer.seconds, answer.lower_bound_s * (1 - 1e-12)) << "seed " << seed;
    ASSERT_EQ(answer.records.size(), saved.profile.records.size());
  }
}

}  // namespace
}  // namespace ebbtide::test
