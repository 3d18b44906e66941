// What a plan says that its passes hold at most, against what they hold.
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <string>
#include <vector>

#include "tests/store/weather_training.h"

namespace ebbtide::test {
namespace {

enum class Large { kNone, kInTheMiddle, kLast };  ///< one tensor that no budget tried here holds

struct Case {
  Where where;
  int percent;
  Large large = Large::kNone;
};
void PrintTo(const Case& it, std::ostream* out) {
  PrintTo(it.where, out);
  *out << " " << it.percent << "% " << static_cast<int>(it.large);
}

/// Of 120 tensors, every third made of the one before.
Shape shape_with(Large large) {
  Shape shape(120);
  std::mt19937_64 random(3);
  for (size_t i = 0; i < shape.size(); ++i) {
    shape[i].redone = i % 3 == 2;
    shape[i].bytes = shape[i].redone ? shape[i - 1].bytes : (16 << 10) + random() % (16 << 10) / 4 * 4;
  }
  if (large != Large::kNone) shape[large == Large::kLast ? 118 : 60].bytes = 2 << 20;
  if (large == Large::kLast) shape.pop_back();
  return shape;
}

class PredictedPeak : public testing::TestWithParam<Case> {};

TEST_P(PredictedPeak, IsWhatPassesHold) {
  const auto [where, percent, large] = GetParam();
  const TemporaryFolder folder("ebbtide-predicted-peak-");
  const Shape shape = shape_with(large);
  const Bytes saved(static_cast<int64_t>(bytes_of(shape)));
  WeatherTraining training({.where = where,
                            .device_budget = saved * percent / 100,
                            .host_budget = MiB(16),
                            .spill_to = {folder.path()},
                            .largest = large == Large::kNone ? size_t{32} << 10 : size_t{2} << 20});
  constexpr int kLearned = 5;  // passes, until a plan rests on medians
  for (int step = 0; step < kLearned + 3; ++step) {
    training.step(shape);
    if (step < kLearned) continue;
    const Stats stats = training.core().stats();
    std::map<std::string, int> planned;
    for (const PlannedRecord& record : training.core().plan()) ++planned[record.action];
    const auto predicted = static_cast<double>(stats.predicted_peak_bytes.count());
    EXPECT_GT(predicted, 0);
    EXPECT_NEAR(static_cast<double>(stats.measured_peak_bytes.count()), predicted, predicted / 100);
    EXPECT_GT(planned["offload"] + planned["spill"], 0);
    if (where == Where::kHost) {
      EXPECT_GT(planned["recompute"], 0);
    }
  }
  training.end();
}

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const Where where : {Where::kHost, Where::kAccelerator}) {
    for (const int percent : {5, 10, 30, 50}) all.push_back({where, percent});
    for (const Large large : {Large::kInTheMiddle, Large::kLast})
      for (const int percent : {5, 10, 30}) all.push_back({where, percent, large});
  }
  return all;
}

std::string name_of(const testing::TestParamInfo<Case>& it) {
  constexpr const char* kLarge[] = {"", "LargeInTheMiddle", "LargeLast"};
  return (it.param.where == Where::kHost ? "Host" : "Accelerator") + std::to_string(it.param.percent) +
         kLarge[static_cast<size_t>(it.param.large)];
}

INSTANTIATE_TEST_SUITE_P(Each, PredictedPeak, testing::ValuesIn(cases()), name_of);

}  // namespace
}  // namespace ebbtide::test
