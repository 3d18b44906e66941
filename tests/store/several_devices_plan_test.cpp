// Passes on two accelerators, whose clocks know nothing of each other, or on two compute streams, have one plan.
#include <ebbtide/store/store_core.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "tests/support/clocked_device.h"
#include "tests/support/fake_clock.h"
#include "tests/support/pattern.h"

namespace ebbtide::test {
namespace {

/// A training loop on two ClockedDevices and one host.
class SeveralDevicesPlanTest : public testing::Test {
 protected:
  static constexpr size_t kLayers = 48;  // on each device
  static constexpr size_t kBytes = 1 << 20;
  static constexpr double kForward = 25e-6;  // a layer's; a copy takes 26 us

  struct Saved {
    size_t device = 0;
    std::shared_ptr<Record> record;
  };

  void open(double share, const Clock* clock_of_second = nullptr) {
    Options options;
    options.device_budget = Bytes(static_cast<int64_t>(kLayers * kBytes * share));
    options.host_budget = MiB(512);
    options.min_bytes = KiB(4);
    core_ = StoreCore::open(options);
    for (size_t i = 0; i < devices_.size(); ++i) {
      const Clock* clock = i == 1 && clock_of_second != nullptr ? clock_of_second : &host_;
      numbers_[i] = i == 1 && devices_[1] == devices_[0]
                        ? numbers_[0]
                        : core_->add_device(devices_[i], std::make_shared<ClockedAllocator>(),
                                            {.own_thread = false, .host_clock = clock});
    }
  }

  /// The second device goes on where the first has ended, as the parts of a model do.
  double step_one_after_the_other() {
    for (const size_t device : {0u, 1u})
      for (size_t i = 0; i < kLayers; ++i) {
        compute({device}, kForward);
        save(device);
      }
    return backward([](const Saved& saved) { return std::vector<size_t>{saved.device}; });
  }
  /// Each does the same as the other, and is asked for it in turn: first all of one's forward, then all of the other's.
  double step_at_once() {
    const double began = host_now();
    for (const size_t device : {0u, 1u})
      for (size_t i = 0; i < kLayers; ++i) {
        devices_[device]->occupy(streams_[device], kForward);
        save(device);
        core_->pump();
      }
    come_to(began + kLayers * kForward);
    return backward([](const Saved& saved) {
      return saved.device == 0 ? std::vector<size_t>{0, 1} : std::vector<size_t>{};
    });
  }

  std::array<std::shared_ptr<ClockedDevice>, 2> devices_{std::make_shared<ClockedDevice>(ClockedDevice::Speeds{}),
                                                         std::make_shared<ClockedDevice>(ClockedDevice::Speeds{})};
  std::array<StreamId, 2> streams_{ClockedDevice::kCompute, ClockedDevice::kCompute};
  FakeClock host_;
  std::shared_ptr<StoreCore> core_;
  bool one_scope_ = false;  // around all steps

 private:
  double host_now() const { return std::chrono::duration<double>(host_.now()).count(); }
  void come_to(double seconds) {
    const auto by = std::chrono::nanoseconds(std::llround((seconds - host_now()) * 1e9));
    if (by <= by.zero()) return;
    host_.advance(by);
    for (size_t i = 0; i < devices_.size(); ++i)
      if (i == 0 || devices_[i] != devices_[0]) devices_[i]->host_spends(std::chrono::duration<double>(by).count());
    core_->pump();
  }
  /// The host waits, and the store's thread looks at copies meanwhile.
  void compute(const std::vector<size_t>& on, double seconds) {
    double until = 0;
    for (const size_t device : on) {
      devices_[device]->occupy(streams_[device], seconds);
      until = std::max(until, devices_[device]->now(streams_[device]));
    }
    come_to(until + 1e-9);
  }

  void save(size_t device) {
    ClockedStorage made(kBytes);
    write_pattern(made.data(), kBytes, static_cast<uint32_t>(saved_.size()));
    const StoreCore::View view{.storage = made.identity(),
                               .version_counter = made.identity(),
                               .begin = Bytes(0),
                               .end = made.bytes(),
                               .footprint = made.bytes(),
                               .op = "N2at5LayerE",
                               .device = numbers_[device],
                               .stream = streams_[device]};
    saved_.push_back({device, core_->pack(pass_, view, [&] { return std::make_shared<ClockedStorage>(made); }).record});
    if (saved_.size() == 1) began_ = devices_[device]->now(streams_[device]);
  }

  /// In reverse order, each layer's for twice as long as its forward. `busy`: the devices that compute with this one.
  template <class Busy>
  double backward(Busy busy) {
    if (!one_scope_) core_->scope_ended(pass_);
    EXPECT_TRUE(core_->task_began(*saved_.back().record, ++task_));
    std::vector<size_t> order(saved_.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = saved_.size() - 1 - i;
    if (busy(saved_.back()).empty())  // both at once: one of each in turn
      for (size_t i = 0; i < order.size(); ++i) order[i] = (i % 2 == 0 ? 2 : 1) * kLayers - 1 - i / 2;
    for (const size_t i : order) {
      const std::shared_ptr<DeviceStorage> storage =
          core_->unpack(*saved_[i].record, streams_[saved_[i].device]).storage;
      std::vector<std::byte> expected(kBytes);
      write_pattern(expected.data(), kBytes, static_cast<uint32_t>(i));
      EXPECT_EQ(std::memcmp(storage->data(), expected.data(), kBytes), 0);
      compute(busy(saved_[i]), 2 * kForward);
      saved_[i].record.reset();
    }
    core_->task_ended(*pass_, task_, streams_[0]);
    saved_.clear();
    if (!one_scope_) pass_.reset();
    double ended = 0;
    for (const size_t i : {0u, 1u}) ended = std::max(ended, devices_[i]->now(streams_[i]));
    return ended - began_;
  }

  std::array<int, 2> numbers_{};
  std::shared_ptr<Pass> pass_;
  std::vector<Saved> saved_;
  double began_ = 0;
  int task_ = 0;
};

TEST_F(SeveralDevicesPlanTest, OneAfterTheOther) {
  open(0.3);
  double took = 0;
  for (int i = 0; i < 10; ++i) took = step_one_after_the_other();
  step_one_after_the_other();  // what the one before took is known by now
  const Stats stats = core_->stats();
  EXPECT_GE(stats.plans, 2);
  EXPECT_NEAR(stats.predicted_step_s / took, 1, 0.05);
  EXPECT_NEAR(stats.measured_step_s / took, 1, 0.01);
  const std::vector<PlannedRecord> plan = core_->plan();
  ASSERT_EQ(plan.size(), 2 * kLayers);
  for (size_t device : {0u, 1u}) {
    const auto begin = plan.begin() + static_cast<std::ptrdiff_t>(device * kLayers), end = begin + kLayers;
    EXPECT_TRUE(std::any_of(begin, end, [](const PlannedRecord& record) { return record.action == "offload"; }))
        << device;
    EXPECT_LE(stats.devices[device + 1].peak_bytes, stats.devices[device + 1].budget_bytes + MiB(1));
  }
  const auto profile = core_->profile();
  ASSERT_TRUE(profile);
  EXPECT_NEAR(profile->profile.seconds, (2 * kLayers * 3 - 1) * kForward, 0.02 * 6 * kLayers * kForward);
}

TEST_F(SeveralDevicesPlanTest, UnderOneScopeForAllSteps) {
  one_scope_ = true;
  open(0.3);
  double took = 0;
  for (int i = 0; i < 10; ++i) took = step_one_after_the_other();
  step_one_after_the_other();
  EXPECT_GE(core_->stats().plans, 2);
  EXPECT_NEAR(core_->stats().predicted_step_s / took, 1, 0.05);
}

TEST_F(SeveralDevicesPlanTest, BothAtOnce) {
  open(0.3);
  double took = 0;
  for (int i = 0; i < 10; ++i) took = step_at_once();
  step_at_once();
  EXPECT_GE(core_->stats().plans, 2);
  EXPECT_NEAR(core_->stats().predicted_step_s / took, 1, 0.15);
  const auto profile = core_->profile();
  ASSERT_TRUE(profile);
  EXPECT_FALSE(profile->profile.invalid());
  // The second device's packs are not after the first's, though it was asked later.
  double last_of_first = 0, first_of_second = 1;
  for (const ProfiledStep& step : profile->profile.steps) {
    if (step.what != ProfiledStep::What::kPack) continue;
    if (step.record < kLayers)
      last_of_first = std::max(last_of_first, step.at);
    else
      first_of_second = std::min(first_of_second, step.at);
  }
  EXPECT_LT(first_of_second, last_of_first / 4);
}

TEST_F(SeveralDevicesPlanTest, TwoStreamsOfOneDevice) {
  devices_[1] = devices_[0];
  streams_[1] = StreamId{9};
  open(0.6);  // of what each stream saves
  double took = 0;
  for (int i = 0; i < 10; ++i) took = step_one_after_the_other();
  step_one_after_the_other();
  const Stats stats = core_->stats();
  EXPECT_GE(stats.plans, 2);
  EXPECT_NEAR(stats.predicted_step_s / took, 1, 0.05);
  EXPECT_LE(stats.devices[1].peak_bytes, stats.devices[1].budget_bytes + MiB(1));
}

TEST_F(SeveralDevicesPlanTest, WhereTheirTimesCannotBeComparedThereIsNoPlan) {
  /// Of a host that does something else for 10 ms, longer than a pass, whenever it is asked.
  class SlowHost final : public Clock {
   public:
    std::chrono::nanoseconds now() const noexcept override { return now_ += std::chrono::milliseconds(10); }

   private:
    mutable std::chrono::nanoseconds now_{0};
  };
  const SlowHost slow;
  open(0.3, &slow);
  for (int i = 0; i < 6; ++i) step_one_after_the_other();
  EXPECT_EQ(core_->stats().plans, 0);
  core_.reset();  // before its clock
}

}  // namespace
}  // namespace ebbtide::test
