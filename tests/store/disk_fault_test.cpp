// The store on disks that really fail: what its users see of it. (What the tier makes of faults: tests/nvme.)
#include <ebbtide/store/error.h>
#include <ebbtide/store/store_core.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <memory>
#include <semaphore>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/nvme/fuse_disk.h"
#include "tests/store/device_trainer.h"
#include "tests/store/fake_storage.h"
#include "tests/support/eventually.h"

namespace ebbtide::test {
namespace {

using testing::AllOf;
using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::ThrowsMessage;

constexpr size_t kSize = 64 << 10;

/// A store whose one spill folder is a file system whose every answer is the test's.
class DiskFaultTest : public testing::Test {
 protected:
  void SetUp() override {
    auto disk = nvme::FuseDisk::make(testing::TempDir());
    if (!disk) GTEST_SKIP() << disk.failure().message;
    disk_ = std::move(disk).value();
  }
  void open(Bytes device_budget, OnFull on_full = OnFull::kKeep) {
    Options options;
    options.device_budget = device_budget;
    options.host_budget = MiB(4);
    options.min_bytes = KiB(4);
    options.spill_to = {disk_->path()};
    options.spill_budget = MiB(32);
    options.on_full = on_full;
    core_ = StoreCore::open(options);
    core_->set_warning_handler([this](const std::string& text) { warnings_.push_back(text); });
  }
  /// From now on.
  void fail(bool writes, int error) {
    disk_->answer_with([writes, error](bool write, uint64_t, uint32_t bytes) {
      return write == writes ? -error : static_cast<int>(bytes);
    });
  }
  void heal() { disk_->answer_with({}); }

  /// Packs tensors that nobody else holds afterwards, and ends the scope.
  void forward(int count) {
    for (int i = 0; i < count; ++i) {
      Memory memory(kSize);
      memory.fill(static_cast<uint64_t>(i));
      bytes_.push_back(copy(memory));
      records_.push_back(pack(*core_, pass_, memory));
    }
    core_->scope_ended(pass_);
  }
  void expect_right(size_t index) { EXPECT_EQ(copy(*unpack(*core_, *records_[index])), bytes_[index]) << index; }
  void backward() {
    while (!records_.empty()) {
      expect_right(records_.size() - 1);
      records_.pop_back();
      bytes_.pop_back();
    }
    pass_.reset();
  }

  std::unique_ptr<nvme::FuseDisk> disk_;  // goes after the store
  std::vector<std::string> warnings_;
  std::shared_ptr<StoreCore> core_;
  std::shared_ptr<Pass> pass_;
  std::vector<std::shared_ptr<Record>> records_;
  std::vector<std::vector<std::byte>> bytes_;
};

TEST_F(DiskFaultTest, WhatCannotBeWrittenIsKeptAndSaid) {
  open(Bytes(0));
  fail(/*writes=*/true, EIO);
  forward(8);
  EXPECT_EQ(core_->stats().device.bytes, Bytes(8 * kSize));
  backward();
  EXPECT_THAT(warnings_, Contains(AllOf(HasSubstr("stays in memory"), HasSubstr(disk_->path()), HasSubstr("offset"),
                                        HasSubstr("(" + std::to_string(EIO) + ")"))));
  EXPECT_EQ(core_->stats().kept.tensors, 8);
  EXPECT_EQ(core_->stats().spilled.tensors, 0);
}

TEST_F(DiskFaultTest, OneWriteThatFailsBarsTheWayOfNoOther) {
  open(Bytes(0));
  std::atomic<int> writes = 0;
  disk_->answer_with(
      [&](bool write, uint64_t, uint32_t bytes) { return write && writes++ == 1 ? -EIO : static_cast<int>(bytes); });
  forward(8);
  EXPECT_LE(core_->stats().device.bytes, Bytes(kSize));
  backward();
  EXPECT_GE(core_->stats().spilled.tensors, 7);
}

TEST_F(DiskFaultTest, WhereItMustNotBeKeptTheErrorNamesTheDisk) {
  open(Bytes(0), OnFull::kRaise);
  fail(/*writes=*/true, EIO);
  EXPECT_THAT([&] { forward(8); }, ThrowsMessage<OutOfBudget>(AllOf(HasSubstr("the disk fails"),
                                                                    HasSubstr(disk_->path()), HasSubstr("spill_to"))));
}

TEST_F(DiskFaultTest, OverAQuotaTrainingGoesOnAndTheDiskIsUsedAgain) {
  open(Bytes(0));
  disk_->refuse_growth(EDQUOT);
  forward(8);
  EXPECT_EQ(core_->stats().device.bytes, Bytes(8 * kSize));
  backward();
  EXPECT_EQ(core_->stats().spilled.tensors, 0);
  EXPECT_THAT(warnings_, Contains(HasSubstr("(" + std::to_string(EDQUOT) + ")")));
  disk_->refuse_growth(0);
  EXPECT_TRUE(eventually([&] {
    forward(2);
    backward();
    return core_->stats().spilled.tensors > 0;
  }));
}

TEST_F(DiskFaultTest, WhatCannotBeReadIsASpillErrorWithPlaceAndErrno) {
  open(Bytes(0));
  forward(3);
  fail(/*writes=*/false, EREMOTEIO);
  const auto told = ThrowsMessage<SpillError>(
      AllOf(HasSubstr(disk_->path()), HasSubstr("offset"), HasSubstr("(" + std::to_string(EREMOTEIO) + ")")));
  EXPECT_THAT([&] { (void)core_->unpack(*records_[2]); }, told);
  heal();
  EXPECT_THAT([&] { (void)core_->unpack(*records_[2]); }, told) << "its place is not trusted any more";
  expect_right(1);
  expect_right(0);
}

TEST_F(DiskFaultTest, WrongBytesAreCorruptTensorAndNotReturned) {
  open(Bytes(0));
  forward(3);
  disk_->flip_bits(true);
  EXPECT_THAT([&] { (void)core_->unpack(*records_[2]); }, ThrowsMessage<CorruptTensor>(HasSubstr(disk_->path())));
  disk_->flip_bits(false);
  expect_right(1);
  expect_right(0);
}

/// Holds the disk's writes back until it is let go; not for ever, since nobody could end this process then.
class HeldWrites {
 public:
  explicit HeldWrites(nvme::FuseDisk& disk) : disk_(disk) {
    disk_.answer_with([this](bool write, uint64_t, uint32_t bytes) {
      if (write && !free_) {
        begun_ = true;
        (void)go_.try_acquire_for(std::chrono::seconds(60));
      }
      return static_cast<int>(bytes);
    });
  }
  HeldWrites(const HeldWrites&) = delete;
  HeldWrites& operator=(const HeldWrites&) = delete;
  ~HeldWrites() {
    let_go();
    disk_.answer_with({});
  }
  bool begun() const { return begun_; }
  void let_go() {
    if (!free_.exchange(true)) go_.release();
  }

 private:
  nvme::FuseDisk& disk_;
  std::atomic<bool> begun_ = false, free_ = false;
  std::binary_semaphore go_{0};
};

TEST_F(DiskFaultTest, WhatIsWantedBeforeItsWriteEndsIsServedFromMemory) {
  open(Bytes(0));
  HeldWrites held(*disk_);  // opening tries what alignment is wanted
  Memory memory(kSize);
  memory.fill(1);
  const std::byte* const where = memory.data();
  records_.push_back(pack(*core_, pass_, std::exchange(memory, Memory(8))));
  std::thread other([&] { core_->scope_ended(pass_); });  // waits for the write
  EXPECT_TRUE(eventually([&] { return held.begun(); }));
  EXPECT_EQ(unpack(*core_, *records_[0])->data(), where);
  held.let_go();
  other.join();
}

TEST_F(DiskFaultTest, ADiskThatDoesNotAnswerIsToldOf) {
  open(Bytes(0));
  HeldWrites held(*disk_);
  core_->set_warning_handler([&](const std::string& text) {  // after ten seconds
    warnings_.push_back(text);
    held.let_go();
  });
  forward(2);
  backward();
  EXPECT_THAT(warnings_, ElementsAre(AllOf(HasSubstr(disk_->path()), HasSubstr("has not answered"))));
}

/// The same, of an accelerator's tensors: host memory stands between.
class DeviceDiskFaultTest : public DiskFaultTest {
 protected:
  void open_on_device() {
    open(KiB(256), OnFull::kAutomatic);
    trainer_ = std::make_unique<DeviceTrainer>(*core_, ChaosOptions{.seed = 7, .pace = Pace::kEager},
                                               StoreCore::DeviceOptions{.own_thread = false});
  }
  void forward(int count) {
    for (int i = 0; i < count; ++i) saved_.push_back(trainer_->save(pass_, 100 + static_cast<uint64_t>(i), kSize));
    core_->scope_ended(pass_);
  }
  void backward() {
    while (!saved_.empty()) {
      (void)trainer_->use(saved_.back());
      saved_.pop_back();
    }
    pass_.reset();
    trainer_->drain();
    EXPECT_EQ(trainer_->wrong(), 0);
    EXPECT_THAT(trainer_->device().races(), IsEmpty());
  }

  std::unique_ptr<DeviceTrainer> trainer_;
  std::vector<DeviceTrainer::Saved> saved_;
};

TEST_F(DeviceDiskFaultTest, WhatCannotBeWrittenStaysInHostMemoryOrOnTheDevice) {
  open_on_device();
  fail(/*writes=*/true, EIO);
  forward(128);  // twice what host memory may hold
  backward();
  const Stats stats = core_->stats();
  EXPECT_EQ(stats.spilled.tensors, 0);
  EXPECT_GT(stats.offloaded.tensors, 0);
  EXPECT_GT(stats.kept.tensors, 0);
  EXPECT_EQ(stats.kept.tensors + stats.offloaded.tensors, 128);
  EXPECT_THAT(warnings_, Contains(AllOf(HasSubstr(disk_->path()), HasSubstr("(" + std::to_string(EIO) + ")"))));
}

TEST_F(DeviceDiskFaultTest, WhatCannotBeReadIsASpillErrorWithPlaceAndErrno) {
  open_on_device();
  forward(128);
  ASSERT_GT(core_->stats().spill.bytes, Bytes(0));
  fail(/*writes=*/false, EREMOTEIO);
  EXPECT_THAT([&] { (void)trainer_->use(saved_.front()); },
              ThrowsMessage<SpillError>(AllOf(HasSubstr(disk_->path()), HasSubstr("offset"),
                                              HasSubstr("(" + std::to_string(EREMOTEIO) + ")"))));
  heal();
  saved_.erase(saved_.begin());
  backward();
}

TEST_F(DeviceDiskFaultTest, WrongBytesAreCorruptTensorAndNotReturned) {
  open_on_device();
  forward(128);
  ASSERT_GT(core_->stats().spill.bytes, Bytes(0));
  disk_->flip_bits(true);
  EXPECT_THROW((void)trainer_->use(saved_.front()), CorruptTensor);
  disk_->flip_bits(false);
  saved_.erase(saved_.begin());
  backward();
}

}  // namespace
}  // namespace ebbtide::test
