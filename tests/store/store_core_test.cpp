// The store with storages of its own and a real spill tier in a temporary folder.
#include <ebbtide/store/error.h>
#include <ebbtide/store/store_core.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <tests/store/fake_storage.h>
#include <tests/support/eventually.h>

#include <sys/resource.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

namespace ebbtide::test {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::ThrowsMessage;

constexpr size_t kSize = 64 << 10;

class StoreCoreTest : public testing::Test {
 protected:
  StoreCoreTest() : folder_(std::filesystem::temp_directory_path() / ("ebbtide-store-" + std::to_string(::getpid()))) {
    std::filesystem::create_directories(folder_);
  }
  ~StoreCoreTest() override { std::filesystem::remove_all(folder_); }

  Options options(Bytes device_budget) const {
    Options options;
    options.device_budget = device_budget;
    options.spill_to = {folder_.string()};
    options.host_budget = MiB(8);
    options.min_bytes = KiB(4);
    return options;
  }

  static Memory memory(uint64_t seed, size_t bytes = kSize) {
    Memory memory(bytes);
    memory.fill(seed);
    return memory;
  }

  struct Forward {
    std::shared_ptr<Pass> pass;
    std::vector<std::shared_ptr<Record>> records;
    std::vector<std::vector<std::byte>> bytes;
  };
  /// Packs `count` tensors that nobody else holds afterwards, and ends the scope.
  static Forward forward(StoreCore& core, int count, uint64_t seed = 0) {
    Forward run;
    for (int i = 0; i < count; ++i) {
      const Memory m = memory(seed + static_cast<uint64_t>(i));
      run.bytes.push_back(copy(m));
      run.records.push_back(pack(core, run.pass, m));
    }
    core.scope_ended(run.pass);
    return run;
  }

  std::filesystem::path folder_;
};

TEST_F(StoreCoreTest, UnderBudgetAllIsKeptAndTheVeryStorageComesBack) {
  auto core = StoreCore::open(options(MiB(64)));
  std::shared_ptr<Pass> pass;
  const Memory m = memory(1);
  auto record = pack(*core, pass, m);
  core->scope_ended(pass);
  EXPECT_EQ(unpack(*core, *record)->data(), m.data());
  record.reset();
  EXPECT_EQ(core->stats().kept.tensors, 1);
  EXPECT_EQ(core->stats().passes, 1);
}

TEST_F(StoreCoreTest, OverBudgetTheOldestLeaveAndComeBackUnchanged) {
  auto core = StoreCore::open(options(KiB(256)));
  Forward run = forward(*core, 16);
  EXPECT_LE(core->stats().device.bytes, KiB(256));
  EXPECT_GT(core->stats().spill.bytes, Bytes(0));
  for (int i = 15; i >= 0; --i) {
    EXPECT_EQ(copy(*unpack(*core, *run.records[i])), run.bytes[i]) << i;
    run.records[i].reset();
    EXPECT_LE(core->stats().device.bytes, KiB(256));
  }
  EXPECT_TRUE(eventually([&] { return core->stats().spill.bytes == Bytes(0); })) << "a write that had begun ends first";
  const Stats stats = core->stats();
  EXPECT_EQ(stats.saved.tensors, 16);
  EXPECT_EQ(stats.kept.tensors + stats.spilled.tensors, 16);
  EXPECT_GE(stats.spilled.tensors, 12);
  EXPECT_LE(stats.device.peak_bytes, KiB(256));
  EXPECT_EQ(stats.device.bytes, Bytes(0));
  EXPECT_EQ(stats.handed_over, Bytes(0));
}

TEST_F(StoreCoreTest, WhatThereWasNoMemoryForOnceComesBackLater) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "a sanitizer ends the program where there is no memory";
#endif
  constexpr size_t kLarge = 256 << 20;  // more than the staging memory is, and than earlier tests have left of the heap
  auto core = StoreCore::open(options(Bytes(0)));
  std::shared_ptr<Pass> pass;
  std::shared_ptr<Record> record;
  {
    const Memory large = memory(1, kLarge);
    record = pack(*core, pass, large);
  }
  core->scope_ended(pass);
  ASSERT_EQ(core->stats().device.bytes, Bytes(0));
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_AS, &before), 0);
  const rlimit none{.rlim_cur = 1 << 20, .rlim_max = before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_AS, &none), 0);
  EXPECT_THAT([&] { (void)unpack(*core, *record); },
              ThrowsMessage<OutOfBudget>(HasSubstr("the system has no memory for a saved tensor of 256 MiB")));
  ASSERT_EQ(::setrlimit(RLIMIT_AS, &before), 0);
  EXPECT_EQ(copy(*unpack(*core, *record)), copy(memory(1, kLarge)));
}

TEST_F(StoreCoreTest, AnyOrderWorks) {
  auto core = StoreCore::open(options(KiB(128)));
  Forward run = forward(*core, 9);
  for (int i : {4, 0, 8, 4, 2, 7, 0, 1, 3, 5, 6}) EXPECT_EQ(copy(*unpack(*core, *run.records[i])), run.bytes[i]) << i;
}

TEST_F(StoreCoreTest, BudgetOfZeroHoldsNothing) {
  auto core = StoreCore::open(options(Bytes(0)));
  Forward run = forward(*core, 4);
  EXPECT_EQ(core->stats().device.bytes, Bytes(0));
  for (int i = 3; i >= 0; --i) {
    EXPECT_EQ(copy(*unpack(*core, *run.records[i])), run.bytes[i]);
    EXPECT_LE(core->stats().device.bytes, Bytes(kSize)) << "one tensor per unpacking thread";
    run.records[i].reset();
  }
}

TEST_F(StoreCoreTest, WhatSomebodyElseHoldsIsNotInTheBudget) {
  auto core = StoreCore::open(options(Bytes(0)));
  std::shared_ptr<Pass> pass;
  auto mine = std::make_unique<Memory>(memory(3));
  auto record = pack(*core, pass, *mine);
  core->scope_ended(pass);
  EXPECT_EQ(core->stats().referenced_elsewhere, Bytes(kSize));
  EXPECT_EQ(core->stats().device.bytes, Bytes(0));
  EXPECT_EQ(core->stats().spill.bytes, Bytes(0)) << "it would free nothing";
  EXPECT_EQ(unpack(*core, *record)->data(), mine->data()) << "returned without a fetch";
  // The next pass finds it let go.
  mine.reset();
  std::shared_ptr<Pass> second;
  auto other = pack(*core, second, memory(4));
  core->scope_ended(second);
  EXPECT_EQ(core->stats().referenced_elsewhere, Bytes(0));
  EXPECT_GT(core->stats().spill.bytes, Bytes(0));
}

// A compiled graph's node asks for all that it saved before it uses any: no budget bounds that.
TEST_F(StoreCoreTest, WhatOneCallerUnpacksAtOnceIsHandedOver) {
  auto core = StoreCore::open(options(Bytes(0)));
  Forward run = forward(*core, 9);
  std::vector<std::shared_ptr<FakeStorage>> at_once;
  bool burst = false;
  for (int i = 8; i >= 0; --i) {
    StoreCore::Unpacked unpacked = core->unpack(*run.records[i]);
    burst |= unpacked.burst;
    if (!unpacked.storage)
      unpacked.storage = core->adopt(*run.records[i], unpacked.memory, std::make_shared<FakeStorage>(unpacked.memory));
    at_once.push_back(std::static_pointer_cast<FakeStorage>(unpacked.storage));
    unpacked = {};
    const DeviceStats stats = core->stats().devices[0];
    EXPECT_LE(stats.bytes, Bytes(kSize));
    EXPECT_LE(Bytes(kSize) * static_cast<int64_t>(at_once.size()), stats.bytes + stats.handed_over)
        << "none is left out";
  }
  EXPECT_TRUE(burst);
  core->note_burst(*run.records[0], "CompiledFunctionBackward");
  const Burst noted = core->stats().devices[0].burst;
  EXPECT_EQ(noted.node, "CompiledFunctionBackward");
  EXPECT_EQ(noted.saved, Bytes(9 * kSize));
  EXPECT_GE(noted.bytes, Bytes(8 * kSize));

  run.records.clear();
  EXPECT_EQ(core->stats().handed_over, Bytes(9 * kSize)) << "it outlives its record";
  EXPECT_EQ(core->stats().device.bytes, Bytes(0));
  at_once.clear();
  EXPECT_EQ(core->stats().handed_over, Bytes(0));
  EXPECT_GE(core->stats().handed_over_peak, Bytes(8 * kSize));
}

TEST_F(StoreCoreTest, WhatIsUnpackedInTurnIsNotHandedOver) {
  auto core = StoreCore::open(options(KiB(128)));
  Forward run = forward(*core, 9);
  for (int i = 8; i >= 0; --i) {
    EXPECT_FALSE(core->unpack(*run.records[i]).burst);
    run.records[i].reset();
  }
  EXPECT_EQ(core->stats().handed_over_peak, Bytes(0));
}

TEST_F(StoreCoreTest, ViewsOfOneVersionAreOneRecordAndOfTwoAreTwo) {
  auto core = StoreCore::open(options(MiB(64)));
  std::shared_ptr<Pass> pass;
  const Memory m = memory(5);
  auto view = whole(m);
  view.end = KiB(8);
  const auto hold = [&] { return std::make_shared<FakeStorage>(m); };
  auto first = core->pack(pass, view, hold).record;
  view.begin = KiB(16);
  view.end = KiB(24);
  EXPECT_EQ(core->pack(pass, view, hold).record, first) << "it widens while it is still here";
  m.version() = 1;
  view.version = 1;
  EXPECT_NE(core->pack(pass, view, hold).record, first);
  // As `x.data` has, which is at version 0 each time, whatever was written between.
  const Memory other_counter(1);
  view.version = 0;
  view.version_counter = other_counter.version_counter();
  EXPECT_NE(core->pack(pass, view, hold).record, first);
  const Stats stats = core->stats();
  EXPECT_EQ(stats.saved.tensors, 3);
  EXPECT_EQ(stats.deduplicated.tensors, 1);
  EXPECT_EQ(stats.packed.tensors, 4);
  EXPECT_EQ(stats.device.bytes + stats.referenced_elsewhere, Bytes(kSize)) << "a storage counts once";
}

/// What is in other hands is gone round once, also what is to leave at once when it is in the store's alone.
TEST_F(StoreCoreTest, AllThatIsInOtherHandsIsLookedAtOnce) {
  auto core = StoreCore::open(options(Bytes(0)));
  std::shared_ptr<Pass> pass;
  const Memory stays(kSize), stays_too(kSize);
  std::optional<Memory> goes(kSize);
  const auto pack_in = [&](const Memory& memory, const RegionLabel* region) {
    auto view = whole(memory);
    view.region = region;
    return core->pack(pass, view, [&] { return std::make_shared<FakeStorage>(memory); }).record;
  };
  const RegionLabel* at_once = RegionLabel::of("at once", Policy::kSpill);
  const auto first = pack_in(stays, at_once);
  const auto second = pack_in(*goes, nullptr);
  const auto third = pack_in(stays_too, at_once);
  goes.reset();
  core->scope_ended(pass);
  EXPECT_EQ(core->stats().referenced_elsewhere, Bytes(2 * kSize));
}

TEST_F(StoreCoreTest, PartOfAStorageMovesAsThatPart) {
  auto core = StoreCore::open(options(Bytes(0)));
  std::shared_ptr<Pass> pass;
  std::vector<std::byte> expected;
  std::shared_ptr<Record> record;
  {
    const Memory m = memory(6, 10 * kSize);
    auto view = whole(m);
    view.begin = KiB(100);
    view.end = KiB(164);
    expected.assign(m.data() + view.begin.count(), m.data() + view.end.count());
    record = core->pack(pass, view, [&] { return std::make_shared<FakeStorage>(m); }).record;
  }
  core->scope_ended(pass);
  EXPECT_LE(core->stats().disk_write.bytes, KiB(64));
  EXPECT_EQ(core->unpack(*record).origin, KiB(100));
  EXPECT_EQ(copy(*unpack(*core, *record)), expected);
}

TEST_F(StoreCoreTest, AnUnpackReusesTheStorageThatIsStillThere) {
  auto core = StoreCore::open(options(MiB(1)));
  Forward run = forward(*core, 40);
  auto first = unpack(*core, *run.records[0]);
  EXPECT_EQ(unpack(*core, *run.records[0]), first);
}

TEST_F(StoreCoreTest, ReturnsAtTheSameAddressModulo64) {
  auto core = StoreCore::open(options(Bytes(0)));
  Forward run = forward(*core, 3);
  for (auto& record : run.records) EXPECT_EQ(reinterpret_cast<uintptr_t>(unpack(*core, *record)->data()) % 64, 0u);
}

TEST_F(StoreCoreTest, NoTierHasRoomNamesTheBudgetAndByHowMuch) {
  Options none;
  none.device_budget = KiB(100);
  none.min_bytes = KiB(4);
  auto core = StoreCore::open(none);
  EXPECT_THAT([&] { forward(*core, 3); },
              ThrowsMessage<OutOfBudget>(
                  AllOf(HasSubstr("device_budget is 100 KiB"), HasSubstr("spill_to"), HasSubstr("by at least"))));
}

TEST_F(StoreCoreTest, OnFullKeepKeepsAndWarnsOnce) {
  Options none;
  none.device_budget = KiB(100);
  none.min_bytes = KiB(4);
  none.on_full = OnFull::kKeep;
  auto core = StoreCore::open(none);
  std::vector<std::string> warnings;
  core->set_warning_handler([&](const std::string& text) { warnings.push_back(text); });
  Forward run = forward(*core, 5);
  for (int i = 4; i >= 0; --i) EXPECT_EQ(copy(*unpack(*core, *run.records[i])), run.bytes[i]);
  ASSERT_EQ(warnings.size(), 1u);
  EXPECT_THAT(warnings[0], HasSubstr("kept"));
}

TEST_F(StoreCoreTest, AFullSpillTierRaisesAndNamesIt) {
  Options small = options(Bytes(0));
  small.spill_budget = KiB(128);
  auto core = StoreCore::open(small);
  core->set_warning_handler([](const std::string&) {});
  EXPECT_THAT([&] { forward(*core, 8); }, ThrowsMessage<OutOfBudget>(HasSubstr("spill_budget")));
  // What had left can go on: the tier comes back once records die.
  Forward run = forward(*core, 2);
  for (int i : {1, 0}) EXPECT_EQ(copy(*unpack(*core, *run.records[i])), run.bytes[i]);
}

TEST_F(StoreCoreTest, OverADaysWritesItRaisesAndNamesThem) {
  Options little = options(Bytes(0));
  little.spill_daily_writes = KiB(300);
  auto core = StoreCore::open(little);
  core->set_warning_handler([](const std::string&) {});
  EXPECT_THAT([&] { forward(*core, 8); }, ThrowsMessage<OutOfBudget>(HasSubstr("spill_daily_writes")));
}

TEST_F(StoreCoreTest, TellsWhatDisksAreWornBy) {
  Options rated = options(Bytes(0));
  rated.spill_endurance = TiB(1);
  auto core = StoreCore::open(rated);
  EXPECT_EQ(core->stats().wear.a_day, Bytes(0));
  {
    Forward run = forward(*core, 4);
    for (int i : {3, 2, 1, 0}) EXPECT_EQ(copy(*unpack(*core, *run.records[i])), run.bytes[i]);
  }
  const Stats stats = core->stats();
  EXPECT_GT(stats.wear.a_day, stats.disk_write.bytes) << "in less than a day";
  EXPECT_NEAR(stats.wear.days_to_rated * static_cast<double>(stats.wear.a_day.count()),
              static_cast<double>(TiB(1).count()), 1e6);
  EXPECT_GT(stats.wear.a_pass, Bytes(0));
}

TEST_F(StoreCoreTest, ARecordMayDieInAnyState) {
  auto core = StoreCore::open(options(KiB(128)));
  for (int round = 0; round < 20; ++round) {
    std::shared_ptr<Pass> pass;
    std::vector<std::shared_ptr<Record>> records;
    for (uint64_t i = 0; i < 8; ++i) {
      records.push_back(pack(*core, pass, memory(i)));
      if (static_cast<int>(i) == round % 8) records.clear();  // resident, leaving, clean or lower, as it comes
    }
    core->scope_ended(pass);
    records.clear();
  }
  core->close();
  const Stats stats = core->stats();
  EXPECT_EQ(stats.device.bytes, Bytes(0));
  EXPECT_EQ(stats.spill.bytes, Bytes(0));
  // A pass also ends when its last record dies: what is packed after that is another, but where nothing is.
  EXPECT_EQ(stats.passes, 38);
  EXPECT_EQ(stats.kept.tensors + stats.spilled.tensors, stats.saved.tensors);
}

TEST_F(StoreCoreTest, CloseBringsAllHomeAndLaterNothingLeaves) {
  auto core = StoreCore::open(options(Bytes(0)));
  Forward run = forward(*core, 6);
  core->close();
  EXPECT_FALSE(core->accepts_packs());
  std::filesystem::remove_all(folder_);
  for (int i = 5; i >= 0; --i) EXPECT_EQ(copy(*unpack(*core, *run.records[i])), run.bytes[i]);
  core->close();
}

TEST_F(StoreCoreTest, RecordsOutliveEveryHandle) {
  auto core = StoreCore::open(options(Bytes(0)));
  Forward run = forward(*core, 4);
  std::weak_ptr<StoreCore> weak = core;
  core.reset();
  for (int i = 3; i >= 0; --i) {
    StoreCore& alive = run.records[i]->core();
    EXPECT_EQ(copy(*unpack(alive, *run.records[i])), run.bytes[i]);
    run.records[i].reset();
  }
  run = {};
  // The disk's thread may be in the call that ends a transfer, which holds the core while it lasts.
  EXPECT_TRUE(eventually([&] { return weak.expired(); }));
}

TEST_F(StoreCoreTest, HandedOutMemoryOutlivesRecordsAndStore) {
  auto core = StoreCore::open(options(Bytes(0)));
  Forward run = forward(*core, 1);
  auto storage = unpack(*core, *run.records[0]);
  run.records.clear();
  core.reset();
  EXPECT_EQ(copy(*storage), run.bytes[0]);
}

TEST_F(StoreCoreTest, VerifyPassesWhatIsRight) {
  Options verifying = options(Bytes(0));
  verifying.verify = true;
  auto core = StoreCore::open(verifying);
  Forward run = forward(*core, 3);
  for (int i : {2, 1, 0}) EXPECT_EQ(copy(*unpack(*core, *run.records[i])), run.bytes[i]);
}

TEST_F(StoreCoreTest, VerifyCatchesAWriteBehindTheStoresBack) {
  Options verifying = options(Bytes(0));
  verifying.verify = true;
  verifying.checksum = false;
  auto core = StoreCore::open(verifying);
  Forward run = forward(*core, 1);
  // The one way to get at the bytes without the tier: memory that came back and was not looked at yet.
  StoreCore::Unpacked unpacked = core->unpack(*run.records[0]);
  unpacked.memory->data()[100] ^= std::byte{1};
  EXPECT_THROW((void)core->unpack(*run.records[0]), CorruptTensor);
}

TEST_F(StoreCoreTest, AShareIsLearnedFromThePassesSeen) {
  Options share = options(Bytes(0));
  share.device_budget = Share{0.25};
  auto core = StoreCore::open(share);
  forward(*core, 16);
  EXPECT_EQ(core->stats().spilled.tensors, 0) << "nothing is known yet";
  EXPECT_EQ(core->stats().device.budget_bytes, KiB(256));
  Forward run = forward(*core, 16, 100);
  for (int i = 15; i >= 0; --i) {
    EXPECT_EQ(copy(*unpack(*core, *run.records[i])), run.bytes[i]);
    run.records[i].reset();
  }
  EXPECT_GE(core->stats().spilled.tensors, 12);
}

TEST_F(StoreCoreTest, PrefetchBringsBackWhatIsNextBeforeItIsAskedFor) {
  auto core = StoreCore::open(options(KiB(256)));
  Forward run = forward(*core, 32);
  ASSERT_TRUE(core->task_began(*run.records[31], 1));
  EXPECT_FALSE(core->task_began(*run.records[30], 1));
  for (int i = 31; i >= 0; --i) {
    EXPECT_EQ(copy(*unpack(*core, *run.records[i])), run.bytes[i]);
    run.records[i].reset();
    EXPECT_LE(core->stats().device.bytes, KiB(256));
  }
  core->task_ended(*run.pass, 1);
  EXPECT_EQ(core->stats().passes, 1);
  EXPECT_EQ(core->stats().device.bytes, Bytes(0));
}

}  // namespace
}  // namespace ebbtide::test
