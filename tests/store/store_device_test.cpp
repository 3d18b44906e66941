// The store on a pretend accelerator: what leaves, comes back and dies, and in which order streams are told.
#include <ebbtide/store/error.h>
#include <ebbtide/store/store_core.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/store/device_trainer.h"
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

class StoreDeviceTest : public testing::Test {
 protected:
  Options options(Bytes device_budget, Bytes host_budget = MiB(64), bool spills = true) const {
    Options options;
    options.device_budget = device_budget;
    options.host_budget = host_budget;
    options.min_bytes = KiB(4);
    if (spills) options.spill_to = {folder_.path()};
    return options;
  }
  void open(const Options& options, Pace pace = Pace::kLazy,
            MutantDevice::Mutation mutation = MutantDevice::Mutation::kNone) {
    core_ = StoreCore::open(options);
    core_->set_warning_handler([this](const std::string& text) { warnings_.push_back(text); });
    trainer_ = std::make_unique<DeviceTrainer>(*core_, ChaosOptions{.seed = 7, .pace = pace},
                                               StoreCore::DeviceOptions{.own_thread = false}, mutation);
  }
  void forward(int count) {
    for (int i = 0; i < count; ++i) saved_.push_back(trainer_->save(pass_, 100 + static_cast<uint64_t>(i), kSize));
    core_->scope_ended(pass_);
  }
  void backward() {
    const bool began = !saved_.empty() && core_->task_began(*saved_.back().record, 1);
    while (!saved_.empty()) {
      (void)trainer_->use(saved_.back());
      saved_.pop_back();
    }
    if (began) core_->task_ended(*pass_, 1);
    pass_.reset();
  }
  void expect_clean() {
    saved_.clear();
    pass_.reset();
    trainer_->drain();
    // The store's own thread, where it has one, may be just letting go of what it looked at last.
    (void)eventually([&] { return trainer_->device().live_bytes() == Bytes(0); });
    EXPECT_EQ(trainer_->wrong(), 0);
    EXPECT_THAT(trainer_->device().races(), IsEmpty());
    EXPECT_THAT(trainer_->device().misuse(), IsEmpty());
    EXPECT_EQ(trainer_->device().live_bytes(), Bytes(0));
    EXPECT_EQ(core_->stats().device.bytes, Bytes(0));
    core_->close();  // waits for the disk
    (void)eventually([&] {
      (void)core_->trim();
      return core_->stats().host.bytes == Bytes(0);
    });
    EXPECT_EQ(core_->stats().host.bytes, Bytes(0));
    EXPECT_LE(core_->stats().host.peak_bytes, core_->stats().host.budget_bytes);
  }

  TemporaryFolder folder_{"ebbtide-device-"};
  std::shared_ptr<StoreCore> core_;
  std::unique_ptr<DeviceTrainer> trainer_;
  std::shared_ptr<Pass> pass_;
  std::vector<DeviceTrainer::Saved> saved_;
  std::vector<std::string> warnings_;
};

TEST_F(StoreDeviceTest, WithinBudgetTheVeryStorageComesBack) {
  open(options(MiB(64)));
  const DeviceTensor tensor = trainer_->make(1, kSize);
  saved_.push_back(trainer_->pack(pass_, tensor, 1));
  EXPECT_EQ(trainer_->use(saved_[0])->data(), tensor->memory.get());
  saved_.clear();
  EXPECT_EQ(core_->stats().kept.tensors, 1);
  EXPECT_EQ(core_->stats().d2h.bytes, Bytes(0));
}

TEST_F(StoreDeviceTest, OverBudgetTheOldestLeaveThoughNoStreamHasRunYet) {
  open(options(KiB(256)));
  for (int i = 0; i < 16; ++i) {
    saved_.push_back(trainer_->save(pass_, 100 + static_cast<uint64_t>(i), kSize));
    EXPECT_LE(core_->stats().device.bytes, KiB(256) + Bytes(kSize));
  }
  core_->scope_ended(pass_);
  EXPECT_LE(core_->stats().device.bytes, KiB(256));
  EXPECT_LE(trainer_->device().live_bytes(), KiB(256)) << "the memory is the framework's again";
  EXPECT_EQ(core_->stats().stall_s, 0.0);
  backward();
  expect_clean();
  const Stats stats = core_->stats();
  EXPECT_EQ(trainer_->uses(), 16);
  EXPECT_EQ(stats.spilled.tensors, 0);
  EXPECT_GE(stats.offloaded.tensors, 12);
  EXPECT_EQ(stats.kept.tensors + stats.offloaded.tensors, 16);
  EXPECT_GE(stats.d2h.bytes, Bytes(12 * kSize));
  EXPECT_GE(stats.h2d.bytes, Bytes(12 * kSize));
}

TEST_F(StoreDeviceTest, BudgetOfZeroHoldsNothing) {
  open(options(Bytes(0)));
  forward(8);
  EXPECT_EQ(core_->stats().device.bytes, Bytes(0));
  EXPECT_EQ(trainer_->device().live_bytes(), Bytes(0));
  backward();
  expect_clean();
}

/// As torch's rrelu does with its noise.
TEST_F(StoreDeviceTest, WhatIsWrittenAfterItsPackLeavesAfterThatToo) {
  open(options(Bytes(0)), Pace::kRandom);
  for (uint64_t i = 0; i < 8; ++i) {
    const DeviceTensor noise = trainer_->allocate(kSize);
    saved_.push_back(trainer_->pack(pass_, noise, i, {.bytes = kSize}, /*written_later=*/true));
    trainer_->produce(*noise, i);
  }
  core_->scope_ended(pass_);
  EXPECT_EQ(core_->stats().device.bytes, Bytes(0));
  backward();
  expect_clean();
}

TEST_F(StoreDeviceTest, WhatSomebodyLetGoOfDoesNotCrowdABackward) {
  open(options(KiB(128)));
  forward(8);
  std::shared_ptr<Pass> second;
  std::vector<DeviceTensor> in_use;
  std::vector<DeviceTrainer::Saved> later;
  for (uint64_t i = 0; i < 4; ++i) {
    in_use.push_back(trainer_->make(200 + i, kSize));
    later.push_back(trainer_->pack(second, in_use.back(), 200 + i));
  }
  core_->scope_ended(second);
  in_use.clear();
  ASSERT_TRUE(core_->task_began(*saved_.back().record, 1));
  for (const DeviceTrainer::Saved& saved : saved_) {  // in an order that no prefetch foresees
    (void)trainer_->use(saved);
    EXPECT_LE(core_->stats().device.bytes, KiB(128) + Bytes(kSize));
  }
  core_->task_ended(*pass_, 1);
  saved_.clear();
  while (!later.empty()) {
    (void)trainer_->use(later.back());
    later.pop_back();
  }
  second.reset();
  expect_clean();
}

// A compiled graph's node asks for all that it saved before it uses any: no budget bounds that.
TEST_F(StoreDeviceTest, WhatOneNodeUnpacksAtOnceIsHandedOver) {
  open(options(KiB(128)));
  forward(9);
  ASSERT_TRUE(core_->task_began(*saved_.back().record, 1));
  std::vector<DeviceTensor> at_once;
  bool burst = false;
  for (int i = 8; i >= 0; --i) {
    const StoreCore::Unpacked unpacked = core_->unpack(*saved_[static_cast<size_t>(i)].record, trainer_->compute());
    burst |= unpacked.burst;
    at_once.push_back(std::static_pointer_cast<ChaosStorage>(unpacked.storage)->tensor());
    const DeviceStats stats = core_->stats().devices[1];
    EXPECT_LE(stats.bytes, KiB(128) + Bytes(kSize));
    EXPECT_LE(trainer_->device().live_bytes(), stats.bytes + stats.handed_over) << "none is left out";
  }
  EXPECT_TRUE(burst);
  core_->note_burst(*saved_.front().record, "CompiledFunctionBackward");
  const Burst noted = core_->stats().devices[1].burst;
  EXPECT_EQ(noted.node, "CompiledFunctionBackward");
  EXPECT_EQ(noted.bytes, trainer_->device().live_bytes());
  EXPECT_EQ(noted.saved, Bytes(9 * kSize));

  core_->task_ended(*pass_, 1);
  saved_.clear();
  EXPECT_EQ(core_->stats().device.bytes, Bytes(0));
  EXPECT_GE(core_->stats().handed_over, Bytes(7 * kSize)) << "it outlives its record";
  at_once.pop_back();  // the first to have been saved: it came back
  EXPECT_GE(core_->stats().handed_over, Bytes(6 * kSize));
  at_once.clear();
  EXPECT_EQ(core_->stats().handed_over, Bytes(0));
  EXPECT_GE(core_->stats().handed_over_peak, Bytes(7 * kSize));
  EXPECT_EQ(core_->stats().alive_peak, trainer_->device().peak_live_bytes());
  expect_clean();
}

TEST_F(StoreDeviceTest, WhatIsUnpackedInTurnIsNotHandedOver) {
  open(options(KiB(128)));
  forward(9);
  backward();
  EXPECT_EQ(core_->stats().handed_over_peak, Bytes(0));
  EXPECT_EQ(core_->stats().devices[1].burst.bytes, Bytes(0));
  expect_clean();
}

TEST_F(StoreDeviceTest, WhatDiesWhileACopyReadsItCountsAsAlive) {
  open(options(KiB(256)));
  forward(16);
  saved_.clear();
  pass_.reset();
  EXPECT_EQ(core_->stats().device.bytes, Bytes(0));
  ASSERT_GT(trainer_->device().live_bytes(), Bytes(0)) << "no stream has run yet";
  forward(16);
  EXPECT_GT(trainer_->device().peak_live_bytes(), KiB(256) + Bytes(kSize));
  EXPECT_EQ(core_->stats().alive_peak, trainer_->device().peak_live_bytes());
  expect_clean();
}

TEST_F(StoreDeviceTest, OverTheHostBudgetTheOldestSink) {
  open(options(KiB(256), MiB(4)), Pace::kEager);
  forward(128);  // 8 MiB
  EXPECT_LE(core_->stats().device.bytes, KiB(256));
  EXPECT_GT(core_->stats().spill.bytes, MiB(3));
  backward();
  expect_clean();
  const Stats stats = core_->stats();
  EXPECT_GT(stats.spilled.tensors, 32);
  EXPECT_EQ(stats.kept.tensors + stats.offloaded.tensors + stats.spilled.tensors, 128);
  EXPECT_EQ(stats.device.peak_bytes <= KiB(256) + Bytes(kSize), true);
  core_->close();
  EXPECT_EQ(core_->stats().spill.bytes, Bytes(0));
}

TEST_F(StoreDeviceTest, WithoutRoomBelowTensorsStayAndAWarningSaysSo) {
  open(options(KiB(256), MiB(2), /*spills=*/false));
  forward(64);
  EXPECT_GT(core_->stats().device.bytes, KiB(256));
  ASSERT_EQ(warnings_.size(), 1u);
  EXPECT_THAT(warnings_[0], HasSubstr("host_budget"));
  backward();
  expect_clean();
}

TEST_F(StoreDeviceTest, OnFullRaiseRaises) {
  Options raising = options(KiB(256), MiB(2), /*spills=*/false);
  raising.on_full = OnFull::kRaise;
  open(raising);
  EXPECT_THROW(forward(64), OutOfBudget);
  expect_clean();
}

TEST_F(StoreDeviceTest, OnFullRaiseRaisesForWhatIsLargerThanTheHostTier) {
  for (const bool spills : {false, true}) {
    Options raising = options(KiB(256), MiB(2), spills);
    raising.on_full = OnFull::kRaise;
    open(raising);
    saved_.push_back(trainer_->save(pass_, 1, size_t{3} << 20));
    EXPECT_THAT(
        [&] { core_->scope_ended(pass_); },
        ThrowsMessage<OutOfBudget>(AllOf(HasSubstr("one of 3 MiB is larger than what fits into host_budget (2 MiB"),
                                         HasSubstr("by at least 2.75 MiB"))));
    expect_clean();
  }
}

TEST_F(StoreDeviceTest, WhatIsLargerThanTheHostTierBarsTheWayOfNoOther) {
  open(options(Bytes(0), MiB(2), /*spills=*/false));
  saved_.push_back(trainer_->save(pass_, 1, size_t{3} << 20));
  forward(4);
  EXPECT_EQ(core_->stats().device.bytes, MiB(3));
  EXPECT_THAT(warnings_, ElementsAre(HasSubstr("is larger than what fits into host_budget")));
  backward();
  expect_clean();
}

TEST_F(StoreDeviceTest, WhatFitsTheHostBudgetButNoSlabBarsTheWayOfNoOther) {
  open(options(Bytes(0), MiB(2.5), /*spills=*/false));
  saved_.push_back(trainer_->save(pass_, 1, (size_t{2} << 20) + kSize));
  forward(4);
  EXPECT_EQ(core_->stats().device.bytes, MiB(2) + Bytes(kSize));
  backward();
  expect_clean();
}

TEST_F(StoreDeviceTest, AnUnpackOnAnotherStreamFetchesForThatStream) {
  open(options(KiB(128)));
  const StreamId other = trainer_->device().make_stream("other");
  forward(8);
  ASSERT_TRUE(core_->task_began(*saved_.back().record, 1));
  bool on_other = false;
  while (!saved_.empty()) {  // prefetched for one, wanted on the other
    const StreamId stream = (on_other = !on_other) ? other : trainer_->compute();
    trainer_->order(trainer_->compute(), stream);
    (void)trainer_->use(saved_.back(), stream);
    trainer_->order(stream, trainer_->compute());
    saved_.pop_back();
  }
  core_->task_ended(*pass_, 1);
  expect_clean();
}

/// As torch's: memory is for the stream that is current on the calling thread.
class PickyAllocator final : public DeviceAllocator {
 public:
  PickyAllocator(ChaosDevice& device, std::function<void()> refused) : inner_(device), refused_(std::move(refused)) {}
  Result<std::shared_ptr<DeviceStorage>> allocate(Bytes bytes, StreamId stream) override {
    if (stream == current) return inner_.allocate(bytes, stream);
    refused_();
    return Failure{FailureCode::kInvalid, 0, "not the current stream"};
  }
  static thread_local StreamId current;

 private:
  ChaosAllocator inner_;
  const std::function<void()> refused_;
};
thread_local StreamId PickyAllocator::current{};

// One thread fetches ahead for another's stream, and is refused; the other asks meanwhile.
TEST_F(StoreDeviceTest, WhatIsRefusedToAnotherStreamsThreadComesToWhoAsksThere) {
  open(options(MiB(1)));
  const auto device = std::make_shared<ChaosDevice>(ChaosOptions{.seed = 7, .pace = Pace::kEager});
  const StreamId mine = device->make_stream("mine"), others = device->make_stream("others");
  std::shared_ptr<Record> first, last;
  std::thread other;
  std::atomic<int> refused{0};
  const auto other_asks = [&] {
    if (refused++ > 0) return;
    other = std::thread([&] {
      PickyAllocator::current = others;
      const auto storage = core_->unpack(*first, others).storage;
      ASSERT_NE(storage, nullptr);
      device->run_all();
      EXPECT_EQ(count_wrong(storage->data(), kSize, 1), 0u);
    });
    std::this_thread::sleep_for(std::chrono::milliseconds(100));  // it waits by now for what is refused
  };
  const int number =
      core_->add_device(device, std::make_shared<PickyAllocator>(*device, other_asks), {.own_thread = false});
  const auto save = [&](StreamId stream, uint32_t seed) {
    auto memory = device->allocate(kSize, stream, "tensor").value();
    (void)device->launch(stream, "produce", {}, {{memory.get(), kSize}},
                         [to = memory.get(), seed] { write_pattern(to, kSize, seed); });
    const auto tensor = std::make_shared<DeviceMemoryImpl>(DeviceMemoryImpl{std::move(memory), kSize, 0});
    const StoreCore::View view{.storage = tensor.get(),
                               .version_counter = &tensor->version,
                               .end = Bytes(kSize),
                               .footprint = Bytes(kSize),
                               .device = number,
                               .stream = stream,
                               .region = RegionLabel::of("leaves", Policy::kOffload)};
    return core_->pack(pass_, view, [&] { return std::make_shared<ChaosStorage>(tensor); }).record;
  };
  first = save(others, 1);
  last = save(mine, 2);
  core_->scope_ended(pass_);
  for (int i = 0; i < 20; ++i) {
    device->run_all();
    core_->pump();
    core_->scope_ended(nullptr);
  }
  ASSERT_EQ(core_->stats().devices[2].bytes, Bytes(0));
  ASSERT_TRUE(core_->task_began(*last, 1));
  PickyAllocator::current = mine;
  const auto storage = core_->unpack(*last, mine).storage;
  ASSERT_TRUE(other.joinable());
  other.join();
  device->run_all();
  EXPECT_EQ(count_wrong(storage->data(), kSize, 2), 0u);
  core_->task_ended(*pass_, 1);
  first = last = nullptr;
  pass_.reset();
  EXPECT_THAT(device->races(), IsEmpty());
}

TEST_F(StoreDeviceTest, AGraphMayBeKept) {
  open(options(KiB(128)));
  forward(8);
  for (int round = 0; round < 3; ++round)
    for (int i = 7; i >= 0; --i) (void)trainer_->use(saved_[static_cast<size_t>(i)]);
  {
    const auto first = trainer_->use(saved_[3]);
    EXPECT_EQ(trainer_->use(saved_[3])->data(), first->data()) << "it is still there";
  }
  expect_clean();
}

TEST_F(StoreDeviceTest, WhatCameBackAndIsSavedAgainIsTheSameRecord) {
  open(options(Bytes(0)));
  DeviceTensor tensor = trainer_->make(1, kSize);
  saved_.push_back(trainer_->pack(pass_, tensor, 1));
  const void* version_counter = &tensor->version;
  tensor = nullptr;
  core_->scope_ended(pass_);
  const auto storage = std::static_pointer_cast<ChaosStorage>(trainer_->use(saved_[0]));
  std::shared_ptr<Pass> second;
  const StoreCore::View view{.storage = storage->identity(),
                             .version_counter = version_counter,
                             .version = 0,
                             .begin = Bytes(0),
                             .end = Bytes(kSize),
                             .footprint = Bytes(kSize),
                             .device = trainer_->number(),
                             .stream = trainer_->compute()};
  const auto packed = core_->pack(second, view, [&] { return storage; });
  EXPECT_EQ(packed.record, saved_[0].record);
  EXPECT_EQ(packed.origin, Bytes(0));
  trainer_->drain();
}

TEST_F(StoreDeviceTest, ADroppedPassLeavesNothing) {
  open(options(KiB(128)));
  forward(8);
  expect_clean();
}

TEST_F(StoreDeviceTest, APrefetchThatNobodyWantsIsParkedUntilItHasPassed) {
  open(options(KiB(512)));
  forward(64);
  ASSERT_TRUE(core_->task_began(*saved_.back().record, 1));
  for (int i = 0; i < 12; ++i) {
    (void)trainer_->use(saved_.back());
    saved_.pop_back();
  }
  core_->task_ended(*pass_, 1);
  expect_clean();
  EXPECT_GT(core_->stats().h2d.bytes, Bytes(0));
}

TEST_F(StoreDeviceTest, PartOfAStorageMovesAsThatPartAndKeepsItsAlignment) {
  open(options(Bytes(0)));
  const size_t odd = 100 * 1024 + 260;
  {
    const DeviceTensor tensor = trainer_->make(5, 4 * kSize);
    const StoreCore::View view{.storage = tensor.get(),
                               .version_counter = &tensor->version,
                               .version = 0,
                               .begin = Bytes(odd),
                               .end = Bytes(odd + kSize),
                               .footprint = Bytes(4 * kSize),
                               .device = trainer_->number(),
                               .stream = trainer_->compute()};
    saved_.push_back({core_->pack(pass_, view, [&] { return std::make_shared<ChaosStorage>(tensor); }).record, 5, 0});
  }
  core_->scope_ended(pass_);
  const StoreCore::Unpacked unpacked = core_->unpack(*saved_[0].record, trainer_->compute());
  EXPECT_LE(unpacked.storage->bytes(), Bytes(kSize + 512));
  EXPECT_EQ((reinterpret_cast<uintptr_t>(unpacked.storage->data()) + odd - unpacked.origin.count()) % 512, odd % 512);
  trainer_->drain();
}

/// Of a fused tensor of 64 tokens, each 1 KiB of q, of k and of v; k of all but the last, so that it lies within q's hull.
constexpr size_t kFused = 64 * 3072;
constexpr DeviceTrainer::Part kQ{.begin = 0, .bytes = 1024, .pitch = 3072, .rows = 64};
constexpr DeviceTrainer::Part kK{.begin = 1024, .bytes = 1024, .pitch = 3072, .rows = 63};

TEST_F(StoreDeviceTest, AStridedViewLeavesAsItsRowsAndComesBackToTheirPlaces) {
  open(options(Bytes(0), MiB(2), /*spills=*/false));
  constexpr int kTensors = 24;  // 4.5 MiB, a third of it saved
  for (uint64_t i = 0; i < kTensors; ++i) {
    const DeviceTensor tensor = trainer_->make(i, kFused);
    saved_.push_back(trainer_->pack(pass_, tensor, i, kQ));
  }
  core_->scope_ended(pass_);
  trainer_->drain();
  EXPECT_EQ(core_->stats().device.bytes, Bytes(0)) << "host_budget holds it";
  EXPECT_EQ(core_->stats().d2h.bytes, Bytes(kFused / 3) * kTensors);
  EXPECT_GE(trainer_->use(saved_[0])->bytes(), Bytes(kQ.end())) << "strides stay";
  trainer_->drain();
  EXPECT_EQ(core_->stats().h2d.bytes, Bytes(kFused / 3));
  backward();
  expect_clean();
}

TEST_F(StoreDeviceTest, ViewsOfTheSameBytesShareARecordWhateverTheirShape) {
  open(options(Bytes(0)));
  {
    const DeviceTensor tensor = trainer_->make(5, kFused);
    saved_.push_back(trainer_->pack(pass_, tensor, 5, kQ));
    saved_.push_back(trainer_->pack(pass_, tensor, 5, {.begin = 256, .bytes = 256, .pitch = 6144, .rows = 20}));
    saved_.push_back(trainer_->pack(pass_, tensor, 5, {.begin = 3072 * 7, .bytes = 1024}));
    saved_.push_back(trainer_->pack(pass_, tensor, 5, kQ));
  }
  EXPECT_EQ(core_->stats().saved.tensors, 1);
  core_->scope_ended(pass_);
  trainer_->drain();
  EXPECT_EQ(core_->stats().d2h.bytes, Bytes(kFused / 3));
  backward();
  expect_clean();
}

TEST_F(StoreDeviceTest, AViewOfTheGapsBeforeItHasLeftMakesItLeaveWhole) {
  open(options(Bytes(0)));
  {
    const DeviceTensor tensor = trainer_->make(5, kFused);
    saved_.push_back(trainer_->pack(pass_, tensor, 5, kQ));
    saved_.push_back(trainer_->pack(pass_, tensor, 5, kK));
  }
  EXPECT_EQ(core_->stats().saved.tensors, 1);
  core_->scope_ended(pass_);
  trainer_->drain();
  EXPECT_EQ(core_->stats().d2h.bytes, Bytes(kQ.end()));
  backward();
  expect_clean();
}

/// The rows are in host memory, or on their way: what lies between them is not, and is a record of its own.
TEST_F(StoreDeviceTest, AViewOfTheGapsAfterItHasLeftIsSavedByItself) {
  for (const bool has_passed : {false, true}) {
    open(options(Bytes(4 * kFused)));  // half of it is let leave early, and stays
    std::weak_ptr<DeviceMemoryImpl> still_there;
    {
      const DeviceTensor tensor = trainer_->make(5, kFused);
      still_there = tensor;
      saved_.push_back(trainer_->pack(pass_, tensor, 5, kQ));
    }
    for (uint64_t i = 10; i < 14; ++i) saved_.push_back(trainer_->save(pass_, i, kFused));
    if (has_passed) trainer_->drain();
    {
      const DeviceTensor tensor = still_there.lock();
      ASSERT_TRUE(tensor);
      saved_.push_back(trainer_->pack(pass_, tensor, 5, kK));
      EXPECT_EQ(core_->stats().deduplicated.tensors, 0) << "it has begun to leave";
    }
    for (uint64_t i = 20; i < 26; ++i) saved_.push_back(trainer_->save(pass_, i, kFused));
    EXPECT_TRUE(still_there.expired());
    backward();
    expect_clean();
  }
}

TEST_F(StoreDeviceTest, PackedRowsSinkAndAreVerified) {
  Options verifying = options(Bytes(0), MiB(4));
  verifying.verify = true;
  open(verifying, Pace::kEager);
  for (uint64_t i = 0; i < 96; ++i) {  // 18 MiB, 6 of it saved
    const DeviceTensor tensor = trainer_->make(i, kFused);
    saved_.push_back(trainer_->pack(pass_, tensor, i, kQ));
  }
  core_->scope_ended(pass_);
  trainer_->drain();
  EXPECT_GT(core_->stats().spill.bytes, MiB(1));
  EXPECT_LT(core_->stats().spill.bytes, MiB(6.5));
  *trainer_->host_memory() ^= std::byte{1};  // of the one that left last
  EXPECT_THROW((void)trainer_->use(saved_.back()), CorruptTensor);
  *trainer_->host_memory() ^= std::byte{1};
  backward();
  expect_clean();
}

TEST_F(StoreDeviceTest, ADeviceWithoutEventsOrMemoryForAMomentIsAskedAgain) {
  using Call = ChaosDevice::Call;
  for (const Call call : {Call::kRecord, Call::kWait, Call::kAllocate}) {
    for (int skip = 0; skip < 40; skip += 1 + skip / 4) {
      open(options(KiB(128)));
      forward(3);
      trainer_->device().fail(call, skip, {FailureCode::kOverCapacity, 0, "not now"});
      for (int i = 3; i < 8; ++i) {
        auto memory = trainer_->device().allocate(kSize, trainer_->compute(), "tensor");
        if (!memory.ok()) continue;  // the framework's own bad luck
        const DeviceTensor tensor =
            std::make_shared<DeviceMemoryImpl>(DeviceMemoryImpl{std::move(memory).value(), kSize, 0});
        (void)trainer_->device().launch(trainer_->compute(), "produce", {}, {{tensor->memory.get(), kSize}},
                                        [to = tensor->memory.get()] { DeviceTrainer::fill(to, 9, kSize); });
        saved_.push_back(trainer_->pack(pass_, tensor, 9));
      }
      core_->scope_ended(pass_);
      backward();
      expect_clean();
      ASSERT_FALSE(HasFailure()) << "call " << static_cast<int>(call) << " skip " << skip;
      saved_.clear();
    }
  }
}

/// Somebody else takes all that is left of the device, in the middle of a backward.
TEST_F(StoreDeviceTest, WhereTheDeviceIsFullOthersLeaveForWhatIsWanted) {
  open(options(MiB(1)), Pace::kEager);
  core_->follow_plans(false);
  for (int pass = 0; pass < 2; ++pass) {  // of the second it is known that its end may stay
    backward();
    forward(32);
  }
  trainer_->drain();
  const Bytes free = trainer_->device().memory().value().free;
  auto hog = trainer_->device().allocate(static_cast<size_t>(free.count()), trainer_->compute(), "hog").value();
  ASSERT_FALSE(trainer_->device().allocate(kSize, trainer_->compute(), "more").ok());
  ASSERT_GT(core_->stats().device.bytes, KiB(512));
  std::vector<std::shared_ptr<DeviceStorage>> in_hand;
  for (size_t i = 0; i < 12; ++i) in_hand.push_back(trainer_->use(saved_[i]));  // the oldest: they have left
  EXPECT_THAT(warnings_, ElementsAre(HasSubstr("had no room for a saved tensor of 64 KiB")));
  EXPECT_LT(core_->stats().device.budget_bytes, MiB(1));
  in_hand.clear();
  backward();
  hog.reset();
  expect_clean();
}

TEST_F(StoreDeviceTest, WhereNothingCanMakeRoomTheErrorSaysSo) {
  open(options(Bytes(0)), Pace::kEager);
  forward(8);
  trainer_->drain();
  const Bytes free = trainer_->device().memory().value().free;
  auto hog = trainer_->device().allocate(static_cast<size_t>(free.count()), trainer_->compute(), "hog").value();
  EXPECT_THROW((void)trainer_->use(saved_[0]), OutOfBudget);
  hog.reset();
  backward();
  expect_clean();
}

/// Whether the last copies have passed before or not: what left is lost to its users either way.
TEST_F(StoreDeviceTest, ALostDeviceIsAnErrorThatSaysSo) {
  for (const bool before_the_copies_pass : {true, false}) {
    open(options(Bytes(0)));
    forward(8);
    if (!before_the_copies_pass) trainer_->drain();
    trainer_->device().lose({FailureCode::kDeviceLost, 0, "it fell off the bus"});
    for (const auto& saved : saved_) {
      for (int again = 0; again < 2; ++again) {
        try {
          (void)core_->unpack(*saved.record, trainer_->compute());
          ADD_FAILURE() << "it came back";
        } catch (const DeviceError& error) {
          EXPECT_EQ(error.code(), ErrorCode::kDevice);
          EXPECT_THAT(error.what(), HasSubstr("the device chaos failed: it fell off the bus"));
        }
      }
    }
    saved_.clear();
    pass_.reset();
    core_->close();
  }
}

/// A copy in waits for its copy out, and may be seen to fail before it.
TEST_F(StoreDeviceTest, ADeviceLostAsACopyInBeginsIsAnErrorToo) {
  open(options(Bytes(0)));
  forward(1);
  ASSERT_EQ(core_->stats().d2h.bytes, Bytes(0)) << "no stream has run yet";
  // At the second event that an unpack records, which is the one after its copy.
  trainer_->device().fail(ChaosDevice::Call::kRecord, 1, {FailureCode::kDeviceLost, 0, "it fell off the bus"});
  for (int again = 0; again < 2; ++again)
    EXPECT_THROW((void)core_->unpack(*saved_[0].record, trainer_->compute()), DeviceError);
  saved_.clear();
  pass_.reset();
  core_->close();
}

TEST_F(StoreDeviceTest, ACopyThatTheDeviceRefusesIsItsError) {
  open(options(Bytes(0)), Pace::kEager);
  forward(2);
  trainer_->drain();
  trainer_->device().fail(ChaosDevice::Call::kWait, 0, {FailureCode::kInvalid, 0, "the stream is being captured"});
  EXPECT_THROW((void)trainer_->use(saved_[1]), DeviceError);
  (void)trainer_->use(saved_[1]);  // later it comes back
  expect_clean();
}

TEST_F(StoreDeviceTest, WhatNoStreamCouldWaitForIsLetGoOfAgain) {
  open(options(Bytes(0)));
  forward(2);
  trainer_->drain();
  // The second wait of an unpack is the caller's, for the copy.
  trainer_->device().fail(ChaosDevice::Call::kWait, 1, {FailureCode::kInvalid, 0, "the stream is being captured"});
  EXPECT_THROW((void)trainer_->use(saved_[1]), DeviceError);
  trainer_->drain();
  EXPECT_GT(core_->stats().h2d.bytes, Bytes(0)) << "it came back all the same";
  EXPECT_EQ(core_->stats().device.bytes, Bytes(0));
  backward();
  expect_clean();
}

TEST_F(StoreDeviceTest, CloseBringsSpilledTensorsIntoHostMemoryAndTheyStillComeBack) {
  open(options(Bytes(0), MiB(2)), Pace::kEager);
  forward(96);
  EXPECT_GT(core_->stats().spill.bytes, Bytes(0));
  core_->close();
  backward();
  expect_clean();
}

/// The host copy of what is on disk goes as it comes back; yet another stream may want it, or its copy may fail.
TEST_F(StoreDeviceTest, WhatIsOnItsWayBackAtCloseComesBackAgain) {
  enum class Back { kBefore, kMeanwhile, kAfter };
  for (const Back back : {Back::kBefore, Back::kMeanwhile, Back::kAfter}) {
    open(options(Bytes(0), MiB(2)), Pace::kEager);
    forward(96);
    DeviceTensor in_hand;
    const auto take = [&] { in_hand = std::static_pointer_cast<ChaosStorage>(trainer_->use(saved_[0]))->tensor(); };
    if (back != Back::kAfter) take();
    if (back == Back::kBefore) trainer_->drain();
    core_->close();
    if (back == Back::kAfter) take();
    const StreamId other = trainer_->device().make_stream("other");
    trainer_->order(trainer_->compute(), other);
    (void)trainer_->use(saved_[0], other);
    trainer_->order(other, trainer_->compute());
    in_hand.reset();

    trainer_->device().fail(ChaosDevice::Call::kCopy, 0, {FailureCode::kInvalid, 0, "the copy is refused"});
    EXPECT_THROW((void)trainer_->use(saved_[1]), DeviceError);
    (void)trainer_->use(saved_[1]);
    backward();
    expect_clean();
    ASSERT_FALSE(HasFailure()) << static_cast<int>(back);
  }
}

TEST_F(StoreDeviceTest, VerifySaysWhenHostMemoryIsNotWhatLeft) {
  Options verifying = options(Bytes(0));
  verifying.verify = true;
  open(verifying, Pace::kEager);
  forward(2);
  trainer_->drain();
  EXPECT_EQ(core_->stats().device.bytes, Bytes(0));
  *trainer_->host_memory() ^= std::byte{1};  // of the one that left last
  EXPECT_THROW((void)trainer_->use(saved_[1]), CorruptTensor);
  (void)trainer_->use(saved_[0]);
  *trainer_->host_memory() ^= std::byte{1};
  (void)trainer_->use(saved_[1]);
  expect_clean();
}

/// A program far ahead of its device, on which nothing has run: it waits for copies rather than hold more.
TEST_F(StoreDeviceTest, AheadOfTheDeviceTheBudgetIsHeldAllTheSame) {
  core_ = StoreCore::open(options(KiB(256), MiB(2)));
  core_->set_warning_handler([this](const std::string& text) { warnings_.push_back(text); });
  trainer_ = std::make_unique<DeviceTrainer>(*core_, ChaosOptions{.seed = 7, .pace = Pace::kLazy},
                                             StoreCore::DeviceOptions{.own_thread = true});
  for (int i = 0; i < 128; ++i) {  // 8 MiB, through a host tier of 2
    saved_.push_back(trainer_->save(pass_, 100 + static_cast<uint64_t>(i), kSize));
    EXPECT_LE(core_->stats().device.bytes, KiB(256) + Bytes(kSize)) << i;
  }
  core_->scope_ended(pass_);
  EXPECT_GT(core_->stats().stall_s, 0);
  EXPECT_THAT(warnings_, IsEmpty());
  backward();
  expect_clean();
}

/// Passes die before their copies have passed: these hold all host memory yet when the next one needs it.
TEST_F(StoreDeviceTest, WhatCopiesOfTheDeadHoldIsWaitedForAndIsNoShortage) {
  for (const bool spills : {false, true}) {
    Options how = options(KiB(256), MiB(2), spills);
    how.on_full = OnFull::kRaise;
    core_ = StoreCore::open(how);
    core_->set_warning_handler([this](const std::string& text) { warnings_.push_back(text); });
    trainer_ = std::make_unique<DeviceTrainer>(*core_, ChaosOptions{.seed = 7, .pace = Pace::kLazy},
                                               StoreCore::DeviceOptions{.own_thread = true});
    for (int step = 0; step < 6; ++step) {
      for (uint64_t i = 0; i < 28; ++i) {
        saved_.push_back(trainer_->save(pass_, 100 + i, kSize));
        ASSERT_LE(core_->stats().device.bytes, KiB(256) + Bytes(kSize)) << "step " << step << ", tensor " << i;
      }
      core_->scope_ended(pass_);
      saved_.clear();
      pass_.reset();
    }
    forward(28);
    backward();
    expect_clean();
    EXPECT_THAT(warnings_, IsEmpty());
  }
}

/// What is fetched ahead fills the budget while a second pass packs: it can be let go of once it is there.
TEST_F(StoreDeviceTest, WhatIsJustComingBackIsNoShortage) {
  Options how = options(KiB(512), MiB(2), /*spills=*/false);
  how.on_full = OnFull::kRaise;
  core_ = StoreCore::open(how);
  trainer_ = std::make_unique<DeviceTrainer>(*core_, ChaosOptions{.seed = 7, .pace = Pace::kLazy},
                                             StoreCore::DeviceOptions{.own_thread = true});
  forward(40);
  ASSERT_TRUE(core_->task_began(*saved_.back().record, 1));
  for (int i = 0; i < 8; ++i) {
    (void)trainer_->use(saved_.back());
    saved_.pop_back();
  }
  std::shared_ptr<Pass> second;
  std::vector<DeviceTrainer::Saved> later;
  for (uint64_t i = 0; i < 3; ++i) {
    later.push_back(trainer_->save(second, 500 + i, kSize));
    EXPECT_LE(core_->stats().device.bytes, KiB(512) + Bytes(kSize)) << i;
  }
  core_->scope_ended(second);
  for (; !later.empty(); later.pop_back()) (void)trainer_->use(later.back());
  second.reset();
  backward();
  expect_clean();
}

TEST_F(StoreDeviceTest, ProcessesOfAJobShareTheMachine) {
  Options automatic = options(Bytes(0));
  automatic.host_budget.reset();
  open(automatic);
  forward(1);
  const Bytes whole = core_->stats().host.budget_bytes;
  expect_clean();
  ASSERT_EQ(::setenv("LOCAL_WORLD_SIZE", "4", 1), 0);
  open(automatic);
  ::unsetenv("LOCAL_WORLD_SIZE");
  forward(1);
  EXPECT_GT(whole, core_->stats().host.budget_bytes * 3);
  EXPECT_LT(whole, core_->stats().host.budget_bytes * 5);
  expect_clean();
}

TEST_F(StoreDeviceTest, CpuTensorsBesideADevice) {
  open(options(KiB(128)));
  forward(8);
  EXPECT_EQ(core_->stats().devices.size(), 2u);
  EXPECT_EQ(core_->stats().devices[0].bytes, Bytes(0));
  EXPECT_GT(core_->stats().devices[1].bytes, Bytes(0));
  backward();
  expect_clean();
}

// With a thread of its own the store needs no caller to see a copy pass, and the thread goes when the core does.
TEST_F(StoreDeviceTest, TheLinkThreadSinksWhileTheCallerComputesAndEndsWithTheCore) {
  std::weak_ptr<StoreCore> weak;
  std::weak_ptr<ChaosStorage> parked;
  {
    auto core = StoreCore::open(options(Bytes(0), MiB(4)));
    weak = core;
    auto trainer = std::make_unique<DeviceTrainer>(*core, ChaosOptions{.seed = 3, .pace = Pace::kEager},
                                                   StoreCore::DeviceOptions{.own_thread = true});
    std::shared_ptr<Pass> pass;
    std::vector<DeviceTrainer::Saved> saved;
    for (uint64_t i = 0; i < 56; ++i) saved.push_back(trainer->save(pass, i, kSize));
    core->scope_ended(pass);
    EXPECT_TRUE(eventually([&] { return core->stats().spill.bytes > Bytes(0); }));
    while (!saved.empty()) {
      (void)trainer->use(saved.back());
      saved.pop_back();
    }
    trainer->drain();
    EXPECT_EQ(trainer->wrong(), 0);
    EXPECT_THAT(trainer->device().races(), IsEmpty());
    EXPECT_EQ(trainer->device().live_bytes(), Bytes(0));
  }
  EXPECT_TRUE(eventually([&] { return weak.expired(); }));
}

struct Mutant {
  MutantDevice::Mutation left_out;
  const char* race;  // what the detector says of it
};
class StoreDeviceMutant : public StoreDeviceTest, public testing::WithParamInterface<Mutant> {};

TEST_P(StoreDeviceMutant, IsCaught) {
  open(options(KiB(256), MiB(4), /*spills=*/false), Pace::kRandom, GetParam().left_out);
  for (int step = 0; step < 3; ++step) {
    forward(24);
    backward();
  }
  trainer_->drain();
  EXPECT_THAT(trainer_->device().races(), Contains(HasSubstr(GetParam().race)));
}
using Mutation = MutantDevice::Mutation;
INSTANTIATE_TEST_SUITE_P(
    Orders, StoreDeviceMutant,
    testing::Values(
        Mutant{Mutation::kComputeDoesNotWait, "'free tensor on compute' writes what 'copy on copy out' reads"},
        Mutant{Mutation::kComputeDoesNotWait, "'use on compute' reads what 'copy on copy in' writes"},
        Mutant{Mutation::kCopyOutDoesNotWait, "'copy on copy out' reads what 'produce on compute' writes"},
        Mutant{Mutation::kCopyInDoesNotWait, "'copy on copy in' writes what 'free returned tensor on compute' writes"},
        Mutant{Mutation::kCopyInDoesNotWait, "'copy on copy in' reads what 'copy on copy out' writes"},
        Mutant{Mutation::kPassedTooEarly, "'copy on copy out' writes what 'copy on copy in' reads"}));

}  // namespace
}  // namespace ebbtide::test
