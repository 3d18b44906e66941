// Waits that end otherwise than they should: broken off, as by Ctrl-C, or with the waiter kept from what it waited for.
#include <ebbtide/store/store_core.h>

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <exception>
#include <memory>
#include <semaphore>
#include <string>
#include <thread>
#include <vector>

#include "tests/store/device_trainer.h"
#include "tests/store/fake_storage.h"
#include "tests/store/slow_disks.h"
#include "tests/support/eventually.h"
#include "tests/support/watchdog.h"

namespace ebbtide::test {
namespace {

constexpr size_t kSize = 64 << 10;
constexpr double kFast = 1e9, kSlow = 200e3;  // bytes a second: a slow disk takes a third of a second for a tensor

class Interrupted : public std::exception {};

/// Breaks off what lasts.
class CtrlC final : public Waiter {
 public:
  void* release() override { return nullptr; }
  void check() override { throw Interrupted(); }
  void resume(void*) noexcept override {}
};

/// Keeps one thread from going on after its wait, as another that holds Python's lock does.
class Latecomer final : public Waiter {
 public:
  void is_this_thread() { late_ = std::this_thread::get_id(); }
  bool waits() const { return waits_; }
  void let_go() { go_.release(); }

  void* release() override { return nullptr; }
  void check() override {}
  void resume(void*) noexcept override {
    if (std::this_thread::get_id() != late_.load()) return;
    waits_ = true;
    go_.acquire();
  }

 private:
  std::atomic<std::thread::id> late_;
  std::atomic<bool> waits_ = false;
  std::binary_semaphore go_{0};
};

class InterruptedWaitTest : public testing::Test {
 protected:
  void open() {
    Options options;
    options.device_budget = Bytes(0);
    options.host_budget = MiB(2);
    options.min_bytes = KiB(4);
    options.spill_to = {folder_.path()};
    core_ = StoreCore::open(options);
  }
  void open_on_device() {
    open();
    trainer_ = std::make_unique<DeviceTrainer>(*core_, ChaosOptions{.seed = 7, .pace = Pace::kEager},
                                               StoreCore::DeviceOptions{.own_thread = false});
    // Thrice what host memory holds: the oldest are on disk alone.
    for (uint64_t i = 0; i < 96; ++i) saved_.push_back(trainer_->save(pass_, i, kSize));
    core_->scope_ended(pass_);
  }
  std::shared_ptr<Record> save_on_host(uint64_t seed) {
    Memory memory(kSize);
    memory.fill(seed);
    return pack(*core_, pass_, memory);
  }
  /// On a disk that is slow meanwhile.
  template <class Call>
  void expect_interrupted(const Call& call) {
    disks_.set_speed(kSlow);
    core_->set_waiter(std::make_shared<CtrlC>());
    EXPECT_THROW(call(), Interrupted);
    core_->set_waiter(nullptr);
    disks_.set_speed(kFast);
  }
  Bytes held() const { return core_->stats().device.bytes; }

  Watchdog watchdog_{std::chrono::seconds(60)};
  const TemporaryFolder folder_{"ebbtide-interrupted-"};
  SlowDisks disks_{kFast};
  std::shared_ptr<StoreCore> core_;
  std::unique_ptr<DeviceTrainer> trainer_;
  std::shared_ptr<Pass> pass_;
  std::vector<DeviceTrainer::Saved> saved_;
};

TEST_F(InterruptedWaitTest, WhatWasWaitedForIsLetGoOfAgain) {
  open();
  const auto record = save_on_host(1);
  core_->scope_ended(pass_);
  ASSERT_EQ(held(), Bytes(0));
  expect_interrupted([&] { (void)core_->unpack(*record); });
  EXPECT_TRUE(eventually([&] {
    core_->scope_ended(pass_);
    return held() == Bytes(0);
  }));
}

TEST_F(InterruptedWaitTest, OnADeviceToo) {
  open_on_device();
  expect_interrupted([&] { (void)core_->unpack(*saved_.front().record, trainer_->compute()); });
  EXPECT_TRUE(eventually([&] {
    (void)trainer_->use(saved_.back());  // begins the copy of what has come up from disk
    trainer_->drain();
    return held() == Bytes(0);
  }));
}

/// A thread that is slow to take what it waited for keeps it in memory: no other may spin until then.
TEST_F(InterruptedWaitTest, WhatIsAboutToBeTakenIsNoRoomToWaitFor) {
  open();
  const auto record = save_on_host(1);
  core_->scope_ended(pass_);
  const auto latecomer = std::make_shared<Latecomer>();
  core_->set_waiter(latecomer);
  disks_.set_speed(kSlow);
  std::thread taker([&] {
    latecomer->is_this_thread();
    (void)core_->unpack(*record);
  });
  EXPECT_TRUE(eventually([&] { return latecomer->waits(); }));
  const auto other = save_on_host(2);
  core_->scope_ended(pass_);  // waits for a write
  EXPECT_LE(core_->stats().stalls["room"].times, 4);
  latecomer->let_go();
  taker.join();
}

TEST_F(InterruptedWaitTest, ACloseThatWasBrokenOffEndsLater) {
  open_on_device();
  expect_interrupted([&] { core_->close(); });
  (void)trainer_->use(saved_[32]);  // a disk reads it for the close
  watchdog_.now("the second close");
  core_->close();
  for (; !saved_.empty(); saved_.pop_back()) (void)trainer_->use(saved_.back());
  trainer_->drain();
  EXPECT_EQ(trainer_->wrong(), 0);
}

}  // namespace
}  // namespace ebbtide::test
