// A trace holds what happened between the first pass and the last, and each thing once.
#include <ebbtide/store/error.h>
#include <ebbtide/store/store_core.h>
#include <ebbtide/store/trace.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <tests/store/fake_storage.h>
#include <nlohmann/json.hpp>

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace ebbtide::test {
namespace {

using nlohmann::json;
using testing::HasSubstr;
using testing::ThrowsMessage;

Trace::Time at(int milliseconds) {
  return Trace::Time(std::chrono::milliseconds(milliseconds));
}

/// Of the events that are no names.
std::vector<json> events_of(const std::string& text) {
  std::vector<json> events;
  const json trace = json::parse(text);
  for (const json& event : trace["traceEvents"])
    if (event["ph"] != "M") events.push_back(event);
  return events;
}

TEST(Trace, HoldsNothingBeforeTheFirstPassAndAfterTheLast) {
  Trace trace("", 2);
  trace.call("pack", at(1), at(2), {});
  trace.begin(Trace::Flow::kWrite, 7, at(3), {});
  EXPECT_TRUE(events_of(trace.json()).empty());
  trace.pass_opened(5, at(10));
  trace.end(Trace::Flow::kWrite, 7, at(11));  // it began before
  EXPECT_TRUE(trace.running());
  trace.pass_ended(4, at(12));  // an older one
  trace.pass_opened(6, at(13));
  trace.pass_ended(6, at(14));
  EXPECT_TRUE(trace.running());
  trace.pass_ended(5, at(15));
  EXPECT_TRUE(trace.complete());
  trace.call("pack", at(16), at(17), {});
  const std::vector<json> events = events_of(trace.json());
  ASSERT_EQ(events.size(), 4) << "two forwards, a beginning and an end each";
  for (const json& event : events) EXPECT_EQ(event["name"], "forward");
}

TEST(Trace, TimesAreMicrosecondsFromTheFirstPass) {
  Trace trace("", 1);
  trace.pass_opened(1, at(100));
  trace.call("wait", at(101), at(103),
             {.bytes = KiB(4), .op = "N2at5ProbeE", .region = "a.0", .record = 9, .cause = "return"});
  const json event = events_of(trace.json()).front();
  EXPECT_EQ(event["ph"], "X");
  EXPECT_EQ(event["name"], "wait");
  EXPECT_DOUBLE_EQ(event["ts"], 1000);
  EXPECT_DOUBLE_EQ(event["dur"], 2000);
  EXPECT_EQ(event["args"],
            (json{{"bytes", 4096}, {"op", "Probe"}, {"region", "a.0"}, {"record", 9}, {"for", "return"}}));
}

TEST(Trace, WhatHasNotEndedGoesToTheLastTimeKnown) {
  Trace trace("", 1);
  trace.pass_opened(1, at(0));
  trace.begin(Trace::Flow::kRead, 3, at(1), {});
  trace.call("unpack", at(2), at(8), {});
  double end = 0;
  for (const json& event : events_of(trace.json()))
    if (event["name"] == "disk read" && event["ph"] == "e") end = event["ts"];
  EXPECT_DOUBLE_EQ(end, 8000);
}

class StoreTrace : public testing::Test {
 protected:
  StoreTrace() : folder_(std::filesystem::temp_directory_path() / ("ebbtide-trace-" + std::to_string(::getpid()))) {
    std::filesystem::create_directories(folder_);
    Options options;
    options.device_budget = KiB(256);
    options.spill_to = {folder_.string()};
    options.host_budget = MiB(8);
    options.min_bytes = KiB(4);
    core_ = StoreCore::open(options);
  }
  ~StoreTrace() override { std::filesystem::remove_all(folder_); }

  std::string path() const { return (folder_ / "trace.json").string(); }
  std::string written() const {
    std::ifstream file(path());
    return {std::istreambuf_iterator<char>(file), {}};
  }

  static constexpr int kTensors = 16;
  void step() {
    std::shared_ptr<Pass> pass;
    std::vector<std::shared_ptr<Record>> records;
    for (int i = 0; i < kTensors; ++i) {
      Memory memory(64 << 10);
      memory.fill(static_cast<uint64_t>(i));
      records.push_back(pack(*core_, pass, memory));
    }
    core_->scope_ended(pass);
    core_->task_began(*records.front(), ++task_);
    for (; !records.empty(); records.pop_back()) unpack(*core_, *records.back());
    core_->task_ended(*pass, task_);
  }

  std::filesystem::path folder_;
  std::shared_ptr<StoreCore> core_;
  int task_ = 0;
};

TEST_F(StoreTrace, IsWrittenWhenItsLastPassHasEnded) {
  core_->trace(path(), 2);
  step();
  EXPECT_TRUE(events_of(written()).empty()) << "a file is there at once, and not filled yet";
  step();
  std::map<std::string, int> begun, ended, calls;
  int64_t most = 0, spilled = 0;
  for (const json& event : events_of(written())) {
    const std::string name = event["name"];
    if (event["ph"] == "b") ++begun[name];
    if (event["ph"] == "e") ++ended[name];
    if (event["ph"] == "X") ++calls[name];
    if (event["ph"] != "C") continue;
    most = std::max<int64_t>(most, event["args"]["device"]);
    spilled = std::max<int64_t>(spilled, event["args"]["spill"]);
  }
  EXPECT_EQ(begun, ended);
  EXPECT_EQ(begun["forward"], 2);
  EXPECT_EQ(begun["backward"], 2);
  EXPECT_EQ(calls["pack"], 2 * kTensors);
  EXPECT_EQ(calls["unpack"], 2 * kTensors);
  EXPECT_GE(begun["disk write"], 2) << "over budget some leave in each";
  EXPECT_GE(begun["disk read"], 2);
  EXPECT_GT(most, 0);
  EXPECT_GT(spilled, 0);

  const std::string before = written();
  step();
  EXPECT_EQ(written(), before) << "later passes are not on it";
}

TEST_F(StoreTrace, CloseWritesWhatThereIs) {
  core_->trace(path(), 100);
  step();
  core_->close();
  EXPECT_FALSE(events_of(written()).empty());
}

TEST_F(StoreTrace, WhatCannotBeIsOneClearError) {
  EXPECT_THAT([&] { core_->trace(path(), 0); }, ThrowsMessage<ConfigError>(HasSubstr("accepted is 1 or more")));
  EXPECT_THAT([&] { core_->trace("/nowhere/trace.json", 1); },
              ThrowsMessage<ConfigError>(HasSubstr("cannot write /nowhere/trace.json")));
  core_->trace(path(), 1);
  EXPECT_THAT([&] { core_->trace(path(), 1); }, ThrowsMessage<ConfigError>(HasSubstr("a trace is under way")));
  step();
  EXPECT_NO_THROW(core_->trace(path(), 1));
}

TEST_F(StoreTrace, AFolderThatIsGoneAtTheEndIsAWarning) {
  std::vector<std::string> warnings;
  core_->set_warning_handler([&](const std::string& text) { warnings.push_back(text); });
  const std::filesystem::path elsewhere = folder_ / "gone";
  std::filesystem::create_directory(elsewhere);
  core_->trace((elsewhere / "trace.json").string(), 1);
  std::filesystem::remove_all(elsewhere);
  step();
  core_->close();
  EXPECT_THAT(warnings, testing::ElementsAre(HasSubstr("save_trace: cannot write")));
}

TEST_F(StoreTrace, StallsAreChargedToACause) {
  for (int i = 0; i < 8; ++i) step();
  const Stats stats = core_->stats();
  double seconds = 0;
  for (const auto& [cause, waits] : stats.stalls) {
    EXPECT_THAT(cause, testing::AnyOf("room", "return"));
    EXPECT_GT(waits.times, 0);
    seconds += waits.seconds;
  }
  EXPECT_NEAR(seconds, stats.stall_s, 1e-9);
}

}  // namespace
}  // namespace ebbtide::test
