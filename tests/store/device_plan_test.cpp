// Passes on an accelerator are learned from by its clock, and planned for.
#include <ebbtide/store/store_core.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tests/support/clocked_device.h"
#include "tests/support/pattern.h"

namespace ebbtide::test {
namespace {

struct Layer {
  size_t bytes = 0;
  double forward_s = 0;
  bool redone = false;  ///< can be made again from the one before, in a fifth of its forward
};

class CopyOfInput : public Recipe {
 public:
  CopyOfInput(std::shared_ptr<Record> input, Bytes bytes)
      : Recipe("copy", {std::move(input)}, Bytes(0), bytes, Bytes(0)) {}
  bool inputs_unchanged() const noexcept override { return true; }
};

/// A training loop on a ClockedDevice.
class DevicePlanTest : public testing::Test {
 protected:
  static constexpr StreamId kStream = ClockedDevice::kCompute;

  void open(std::vector<Layer> layers, double share, ClockedDevice::Speeds speeds = {}) {
    layers_ = std::move(layers);
    device_ = std::make_shared<ClockedDevice>(speeds);
    Options options;
    int64_t saved = 0;
    for (const Layer& layer : layers_) saved += static_cast<int64_t>(layer.bytes);
    options.device_budget = Bytes(static_cast<int64_t>(static_cast<double>(saved) * share));
    options.host_budget = MiB(512);
    options.min_bytes = KiB(4);
    core_ = StoreCore::open(options);
    number_ = core_->add_device(device_, std::make_shared<ClockedAllocator>(), {.own_thread = false});
  }

  /// Returns what it took by the device's clock, from the first pack to the end of the backward.
  double step() {
    std::shared_ptr<Pass> pass;
    std::vector<std::shared_ptr<Record>> records;
    double began = 0;
    for (size_t i = 0; i < layers_.size(); ++i) {
      compute(layers_[i].forward_s);
      if (i == 0) began = device_->compute_now();
      records.push_back(save(pass, i));
      if (layers_[i].redone && i > 0)
        core_->offer_recipe(*records[i], std::make_shared<CopyOfInput>(records[i - 1], size_of(i)));
    }
    core_->scope_ended(pass);
    EXPECT_TRUE(core_->task_began(*records.back(), ++task_));
    for (size_t i = layers_.size(); i-- > 0;) {
      EXPECT_TRUE(holds(*fetch(*records[i], i), i));
      compute(2 * layers_[i].forward_s);
      records[i].reset();
      between_unpacks(i);
    }
    core_->task_ended(*pass, task_, kStream);
    const double ended = device_->compute_now();
    return ended - began;
  }

  /// The store's thread looks at copies while the device is busy.
  void compute(double seconds) {
    device_->compute(seconds);
    device_->host_waits();
    core_->pump();
  }

  static bool holds(const DeviceStorage& storage, size_t i) {
    std::vector<std::byte> expected(static_cast<size_t>(storage.bytes().count()));
    write_pattern(expected.data(), expected.size(), static_cast<uint32_t>(i));
    return std::memcmp(storage.data(), expected.data(), expected.size()) == 0;
  }

  std::shared_ptr<DeviceStorage> fetch(Record& record, size_t i) {
    StoreCore::Unpacked unpacked = core_->unpack(record, kStream);
    if (!unpacked.recipe) return unpacked.storage;
    (void)core_->unpack(*unpacked.recipe->inputs().front(), kStream, StoreCore::AskedBy::kRedo);
    compute(layers_[i].forward_s / 5);
    return core_->redone(record, made(i), kStream, 0);
  }

  std::shared_ptr<ClockedStorage> made(size_t i) const {
    auto storage = std::make_shared<ClockedStorage>(layers_[i].bytes);
    write_pattern(storage->data(), layers_[i].bytes, static_cast<uint32_t>(i));
    return storage;
  }
  Bytes size_of(size_t i) const { return Bytes(static_cast<int64_t>(layers_[i].bytes)); }
  std::shared_ptr<Record> save(std::shared_ptr<Pass>& pass, size_t i) {
    const auto storage = made(i);
    const StoreCore::View view{.storage = storage->identity(),
                               .version_counter = storage->identity(),
                               .begin = Bytes(0),
                               .end = size_of(i),
                               .footprint = size_of(i),
                               .op = "N2at5LayerE",
                               .device = number_,
                               .stream = kStream};
    return core_->pack(pass, view, [&] { return std::make_shared<ClockedStorage>(*storage); }).record;
  }

  std::shared_ptr<ClockedDevice> device_;
  std::shared_ptr<StoreCore> core_;
  std::function<void(size_t)> between_unpacks = [](size_t) {};

 private:
  std::vector<Layer> layers_;
  int number_ = 0;
  int task_ = 0;
};

std::vector<Layer> even(size_t count, double seconds) {
  return std::vector<Layer>(count, {.bytes = 1 << 20, .forward_s = seconds});
}

TEST_F(DevicePlanTest, PredictsWhatTheDeviceTakes) {
  // What moves takes as long as the computation has: 20 us a MiB each way.
  for (const double seconds : {60e-6, 25e-6, 10e-6}) {
    open(even(48, seconds), 0.3);
    double took = 0;
    for (int i = 0; i < 8; ++i) took = step();
    step();  // what the one before took is known by now
    const Stats stats = core_->stats();
    EXPECT_GE(stats.plans, 2) << seconds;
    EXPECT_NEAR(stats.predicted_step_s / took, 1, 0.05) << seconds;
    EXPECT_EQ(core_->plan().size(), 48u);
    EXPECT_LE(stats.devices[1].peak_bytes, stats.devices[1].budget_bytes + MiB(1));
  }
}

TEST_F(DevicePlanTest, WaitsAndRedosAreNoneOfItsComputation) {
  std::vector<Layer> layers = even(48, 10e-6);  // a link far too slow for it
  for (size_t i = 1; i < layers.size(); i += 2) layers[i].redone = true;
  open(layers, 0.1);
  for (int i = 0; i < 8; ++i) step();
  const auto profile = core_->profile();
  ASSERT_TRUE(profile);
  EXPECT_NEAR(profile->profile.seconds, 48 * 3 * 10e-6 - 10e-6, 5e-6) << "the first forward is before the first pack";
  int recipes = 0;
  for (const ProfiledRecord& record : profile->profile.records) {
    if (!record.recipe) continue;
    ++recipes;
    EXPECT_NEAR(record.recipe->seconds, 2e-6, 1e-6);
  }
  EXPECT_GT(recipes, 0);
}

TEST_F(DevicePlanTest, APlanIsNotSlowerThanTheRuleThatItReplaces) {
  std::vector<Layer> layers;
  for (size_t i = 0; i < 60; ++i)  // large and quick ones among small and slow ones
    layers.push_back(
        {.bytes = i % 3 == 0 ? size_t{4} << 20 : size_t{1} << 19, .forward_s = i % 3 == 0 ? 10e-6 : 60e-6});
  open(layers, 0.4);
  core_->follow_plans(false);
  double reactive = 0;
  for (int i = 0; i < 4; ++i) reactive = step();
  core_->follow_plans(true);
  double planned = 0;
  for (int i = 0; i < 8; ++i) planned = step();
  EXPECT_GT(core_->stats().plans, 0);
  EXPECT_LE(planned, reactive * 1.02);
}

TEST_F(DevicePlanTest, AStreamThatIsCapturedIsNotMarked) {
  open(even(24, 20e-6), 0.3);
  between_unpacks = [this](size_t i) { device_->capture(i > 10); };
  for (int i = 0; i < 6; ++i) step();
  EXPECT_EQ(core_->stats().plans, 0);
}

}  // namespace
}  // namespace ebbtide::test
