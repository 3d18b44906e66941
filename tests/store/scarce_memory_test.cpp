// The system has no memory for the host tier, though host_budget has room: what stays on the device, and for how long.
#include <ebbtide/store/error.h>
#include <ebbtide/store/store_core.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "tests/store/device_trainer.h"
#include "tests/store/scarce_memory.h"
#include "tests/support/eventually.h"

namespace ebbtide::test {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::ThrowsMessage;

constexpr size_t kSize = 64 << 10;
constexpr int kTensors = 32;

class ScarceMemoryTest : public testing::Test {
 protected:
  void open(OnFull on_full, bool spills) {
    Options options;
    options.device_budget = Bytes(0);
    options.host_budget = MiB(4);
    options.min_bytes = KiB(4);
    options.on_full = on_full;
    if (spills) options.spill_to = {folder_.path()};
    core_ = StoreCore::open(options);
    core_->set_warning_handler([this](const std::string& text) { warnings_.push_back(text); });
    trainer_ = std::make_unique<DeviceTrainer>(*core_, ChaosOptions{.seed = 7, .pace = Pace::kEager},
                                               StoreCore::DeviceOptions{.own_thread = false});
  }
  void forward() {
    for (uint64_t i = 0; i < kTensors; ++i) saved_.push_back(trainer_->save(pass_, i, kSize));
    core_->scope_ended(pass_);
  }
  Bytes held() const { return core_->stats().device.bytes; }

  const TemporaryFolder folder_{"ebbtide-scarce-memory-"};
  std::vector<std::string> warnings_;
  std::shared_ptr<StoreCore> core_;
  std::unique_ptr<DeviceTrainer> trainer_;
  std::shared_ptr<Pass> pass_;
  std::vector<DeviceTrainer::Saved> saved_;
};

TEST_F(ScarceMemoryTest, TensorsStayWithAWarningAndLeaveOnceThereIsMemory) {
  for (const bool spills : {false, true}) {
    warnings_.clear();
    open(OnFull::kKeep, spills);
    ScarceMemory memory(Bytes(0));
    forward();
    EXPECT_EQ(held(), Bytes(kSize) * kTensors);
    EXPECT_THAT(warnings_, ElementsAre(AllOf(HasSubstr("the system has no memory for more of host_budget (4 MiB"),
                                             HasSubstr("device_budget by at least"))));
    EXPECT_LT(memory.asked(), kTensors) << "not by every pack";
    memory.set_left(GiB(1));
    EXPECT_TRUE(eventually([&] {
      core_->scope_ended(pass_);
      return held() == Bytes(0);
    }));
    for (; !saved_.empty(); saved_.pop_back()) (void)trainer_->use(saved_.back());
    trainer_->drain();
    EXPECT_EQ(trainer_->wrong(), 0);
    pass_.reset();
  }
}

TEST_F(ScarceMemoryTest, WhereTheyMustNotStayTheErrorSaysWhyThoughThereIsADisk) {
  open(OnFull::kRaise, /*spills=*/true);
  const ScarceMemory memory(Bytes(0));
  EXPECT_THAT([&] { forward(); },
              ThrowsMessage<OutOfBudget>(HasSubstr("the system has no memory for more of host_budget")));
}

}  // namespace
}  // namespace ebbtide::test
