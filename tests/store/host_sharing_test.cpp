// Two accelerators of one store, of which one saves ten times more than the other: what each gets of host memory.
#include <ebbtide/store/store_core.h>

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tests/store/device_trainer.h"
#include "tests/support/watchdog.h"

namespace ebbtide::test {
namespace {

constexpr size_t kSize = 64 << 10;
constexpr Bytes kBytes{kSize};
constexpr int kMuch = 80, kLittle = 8;  // tensors a pass
constexpr int64_t kStay = 2;            // that the budget of a device holds
constexpr int64_t kHost = 64;           // that host memory would hold, were there nothing else in it

class HostSharingTest : public testing::Test {
 protected:
  void open(const std::string& spill_to = {}) {
    Options options;
    options.device_budget = kBytes * kStay;
    options.host_budget = kBytes * kHost;
    options.min_bytes = KiB(4);
    options.on_full = OnFull::kKeep;
    if (!spill_to.empty()) options.spill_to = {spill_to};
    core_ = StoreCore::open(options);
    core_->set_warning_handler([](const std::string&) {});
    for (uint64_t i = 0; i < 2; ++i)
      trainers_.push_back(std::make_unique<DeviceTrainer>(
          *core_, ChaosOptions{.seed = i, .pace = Pace::kEager, .streams_above = 1000 * i},
          StoreCore::DeviceOptions{.own_thread = !spill_to.empty()}));
  }

  void save(size_t device, int count) {
    watchdog_.now("a forward");
    for (; count > 0; --count) saved_.emplace_back(device, trainers_[device]->save(pass_, seed_++, kSize));
  }
  void end_forward() {
    core_->scope_ended(pass_);
    for (const auto& trainer : trainers_) held_.push_back(held(trainer->number()));
  }
  void backward() {
    watchdog_.now("a backward");
    const bool began = core_->task_began(*saved_.back().second.record, ++tasks_);
    for (; !saved_.empty(); saved_.pop_back()) (void)trainers_[saved_.back().first]->use(saved_.back().second);
    if (began) core_->task_ended(*pass_, tasks_);
    pass_ = nullptr;
  }
  /// In tensors.
  int64_t held(int number) const {
    return core_->stats().devices[static_cast<size_t>(number)].bytes.count() / static_cast<int64_t>(kSize);
  }
  void expect_right() {
    for (const auto& trainer : trainers_) {
      trainer->drain();
      EXPECT_EQ(trainer->wrong(), 0);
    }
    EXPECT_LE(core_->stats().host.peak_bytes, core_->stats().host.budget_bytes);
  }

  // Of what the two want to have there, 78 and 6, all but a few fit: 59 and 4.
  static constexpr int64_t kShareOfMuch = 59, kShareOfLittle = 4;
  static constexpr int64_t kRounding = 3;  // what slabs hold less than their size

  std::shared_ptr<StoreCore> core_;
  std::vector<std::unique_ptr<DeviceTrainer>> trainers_;
  std::shared_ptr<Pass> pass_;
  std::vector<std::pair<size_t, DeviceTrainer::Saved>> saved_;
  std::vector<int64_t> held_;  // by devices, after the last forward
  uint64_t seed_ = 1;
  int tasks_ = 0;
  Watchdog watchdog_{std::chrono::seconds(60)};
};

TEST_F(HostSharingTest, TheOneThatSavesLittleKeepsItsShareWhoeverComesFirst) {
  open();
  for (const size_t first : {0, 1, 0, 0, 1}) {
    held_.clear();
    save(first, first == 0 ? kMuch : kLittle);
    save(1 - first, first == 0 ? kLittle : kMuch);
    end_forward();
    backward();
  }
  for (const size_t first : {0, 1}) {
    held_.clear();
    save(first, first == 0 ? kMuch : kLittle);
    save(1 - first, first == 0 ? kLittle : kMuch);
    end_forward();
    EXPECT_LE(held_[0], kMuch - kShareOfMuch + kRounding) << "device " << first << " first";
    EXPECT_LE(held_[1], kLittle - kShareOfLittle) << "device " << first << " first";
    backward();
  }
  expect_right();
}

TEST_F(HostSharingTest, PassesOfOneDeviceEachShareToo) {
  open();
  const auto both = [&] {
    save(0, kMuch);
    end_forward();
    auto pass = std::exchange(pass_, nullptr);
    auto saved = std::exchange(saved_, {});
    held_.clear();
    save(1, kLittle);
    end_forward();
    backward();
    std::swap(pass, pass_);
    std::swap(saved, saved_);
    backward();
  };
  both();
  both();
  EXPECT_LE(held_[0], kMuch - kShareOfMuch + kRounding);
  EXPECT_LE(held_[1], kLittle - kShareOfLittle);
  expect_right();
}

TEST_F(HostSharingTest, NothingIsKeptForADeviceThatIsUsedNoMore) {
  open();
  save(0, kMuch);
  save(1, kLittle);
  end_forward();
  backward();
  for (int pass = 0; pass < 9; ++pass) {
    held_.clear();
    save(0, kMuch);
    end_forward();
    if (pass == 0) EXPECT_GE(held_[0], kMuch - kShareOfMuch) << "the other's share is kept";
    backward();
  }
  EXPECT_LE(held_[0], kMuch - kHost + kRounding);
  expect_right();
}

TEST_F(HostSharingTest, WithADiskBothStayWithinTheirBudgets) {
  const TemporaryFolder folder("ebbtide-host-sharing-");
  open(folder.path());
  for (int pass = 0; pass < 6; ++pass) {
    held_.clear();
    save(0, kMuch);
    save(1, kLittle);
    save(0, kMuch);
    end_forward();
    EXPECT_LE(held_[0], kStay);
    EXPECT_LE(held_[1], kStay);
    backward();
  }
  expect_right();
}

}  // namespace
}  // namespace ebbtide::test
