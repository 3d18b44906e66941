#include <ebbtide/store/error.h>
#include <ebbtide/store/options.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

namespace ebbtide {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::ThrowsMessage;

TEST(ParseBytes, TakesWhatPeopleWrite) {
  EXPECT_EQ(parse_bytes("0"), Bytes(0));
  EXPECT_EQ(parse_bytes("4096"), Bytes(4096));
  EXPECT_EQ(parse_bytes("512MiB"), MiB(512));
  EXPECT_EQ(parse_bytes(" 2 GiB "), GiB(2));
  EXPECT_EQ(parse_bytes("1.5TB"), Bytes(1500000000000));
  EXPECT_EQ(parse_bytes("1900M"), MiB(1900));
}

TEST(ParseBytes, RefusesWhatIsNoSize) {
  for (const char* text : {"", "MiB", "ten", "1.5XB", "-1", "1e30", "nan", "1 2", "0x10"})
    EXPECT_FALSE(parse_bytes(text)) << text;
}

TEST(SetOption, DeviceBudgetMayBeAShare) {
  Options options;
  set_option(options, "device_budget", "30%");
  EXPECT_EQ(std::get<Share>(*options.device_budget).value, 0.3);
  set_option(options, "device_budget", "1GiB");
  EXPECT_EQ(std::get<Bytes>(*options.device_budget), GiB(1));
}

TEST(SetOption, AWrongValueNamesOptionValueAndWhatIsAccepted) {
  Options options;
  EXPECT_THAT([&] { set_option(options, "device_budget", "lots"); },
              ThrowsMessage<ConfigError>(
                  AllOf(HasSubstr("device_budget"), HasSubstr("lots"), HasSubstr("'2GiB'"), HasSubstr("'30%'"))));
  EXPECT_THAT([&] { set_option(options, "device_budget", "130%"); }, ThrowsMessage<ConfigError>(HasSubstr("100%")));
  EXPECT_THAT([&] { set_option(options, "on_full", "explode"); }, ThrowsMessage<ConfigError>(HasSubstr("'raise'")));
  EXPECT_THAT([&] { set_option(options, "verify", "maybe"); }, ThrowsMessage<ConfigError>(HasSubstr("true or false")));
}

TEST(SetOption, NumaIsANodeOrAWord) {
  Options options;
  set_option(options, "numa", "1");
  EXPECT_EQ(options.numa, NumaNode{1});
  set_option(options, "numa", "off");
  EXPECT_EQ(options.numa, kAnyNode);
  set_option(options, "numa", "auto");
  EXPECT_EQ(options.numa, std::nullopt);
  for (const char* wrong : {"", "near", "-1", "1.5", "99999999999"})
    EXPECT_THAT([&] { set_option(options, "numa", wrong); }, ThrowsMessage<ConfigError>(HasSubstr("'auto', 'off'")));
}

TEST(SetOption, AnUnknownNameGetsTheNearest) {
  Options options;
  EXPECT_THAT([&] { set_option(options, "device_budgt", "1"); },
              ThrowsMessage<ConfigError>(HasSubstr("'device_budget'")));
  EXPECT_THAT([&] { set_option(options, "spil_to", "/x"); }, ThrowsMessage<ConfigError>(HasSubstr("'spill_to'")));
}

class Environment : public testing::Test {
 protected:
  void TearDown() override {
    for (const char* name : {"EBBTIDE_DEVICE_BUDGET", "EBBTIDE_SPILL_TO", "EBBTIDE_VERIFY", "EBBTIDE_RECOMPUTE",
                             "EBBTIDE_PLAN", "EBBTIDE_NUMA", "EBBTIDE_DEVICE_MEMORY", "EBBTIDE_ON_FULL"})
      unsetenv(name);
  }
};

TEST_F(Environment, FillsOnlyWhatIsUnset) {
  setenv("EBBTIDE_DEVICE_BUDGET", "1GiB", 1);
  setenv("EBBTIDE_SPILL_TO", "/a:/b", 1);
  setenv("EBBTIDE_VERIFY", "1", 1);
  setenv("EBBTIDE_RECOMPUTE", "off", 1);
  setenv("EBBTIDE_PLAN", "/a/plan.json", 1);
  setenv("EBBTIDE_NUMA", "off", 1);
  Options given;
  given.device_budget = MiB(5);
  const Options options = resolve(given);
  EXPECT_EQ(std::get<Bytes>(*options.device_budget), MiB(5));
  EXPECT_EQ(options.spill_to, (std::vector<std::string>{"/a", "/b"}));
  EXPECT_EQ(options.verify, true);
  EXPECT_EQ(options.recompute, false);
  EXPECT_EQ(options.plan, "/a/plan.json");
  EXPECT_EQ(options.numa, kAnyNode);
  given.plan = "mine.json";
  EXPECT_EQ(resolve(given).plan, "mine.json");
}

TEST_F(Environment, DoesNotFillWhatIsGivenAsItIsByDefault) {
  setenv("EBBTIDE_SPILL_TO", "/a", 1);
  setenv("EBBTIDE_ON_FULL", "raise", 1);
  setenv("EBBTIDE_PLAN", "/a/plan.json", 1);
  Options options;
  for (const char* name : {"spill_to", "plan"}) set_option(options, name, "");
  set_option(options, "on_full", "auto");
  options = resolve(options);
  EXPECT_THAT(options.spill_to, testing::IsEmpty());
  EXPECT_EQ(options.plan, "");
  EXPECT_EQ(options.on_full, OnFull::kAutomatic);
  Options put_in;
  put_in.given = {"spill_to"};
  EXPECT_THAT(resolve(put_in).spill_to, testing::IsEmpty());
  EXPECT_EQ(resolve(put_in).on_full, OnFull::kRaise);
}

TEST_F(Environment, WhatIsGivenInsteadOfTheOtherWins) {
  setenv("EBBTIDE_DEVICE_MEMORY", "1GiB", 1);
  Options given;
  given.device_budget = MiB(5);
  EXPECT_EQ(resolve(given).device_memory, std::nullopt);
  EXPECT_EQ(resolve({}).device_memory, GiB(1));
}

TEST_F(Environment, AWrongValueNamesTheVariable) {
  setenv("EBBTIDE_DEVICE_BUDGET", "lots", 1);
  EXPECT_THAT([] { (void)resolve({}); }, ThrowsMessage<ConfigError>(HasSubstr("EBBTIDE_DEVICE_BUDGET")));
}

TEST(Resolve, RefusesContradictions) {
  Options options;
  options.spill_budget = GiB(1);
  EXPECT_THROW((void)resolve(options), ConfigError);
  for (auto option : {&Options::spill_reserve, &Options::spill_daily_writes, &Options::spill_endurance}) {
    options = {};
    options.*option = Bytes(-1);
    EXPECT_THROW((void)resolve(options), ConfigError);
  }
  options = {};
  options.host_budget = Bytes(-1);
  EXPECT_THROW((void)resolve(options), ConfigError);
  options = {};
  options.device_budget = MiB(1);
  options.device_memory = MiB(1);
  EXPECT_THAT([&] { (void)resolve(options); },
              ThrowsMessage<ConfigError>(HasSubstr("device_memory and device_budget")));
  options = {};
  options.device_budget = Share{1.5};
  EXPECT_THROW((void)resolve(options), ConfigError);
}

}  // namespace
}  // namespace ebbtide
