// Which transfer goes when, and how the tier ends: the test plays the I/O thread, so every order is exact.
#include "spill_fixture.h"

namespace ebbtide::nvme {
namespace {

using Priority = SpillTier::Priority;

class SpillTierOrder : public ::testing::Test {
 protected:
  void SetUp() override {
    SpillOptions options;
    options.folders = {folder_.path()};
    options.budget = MiB(256);
    tier_ = open_by_hand(queue_, options);
  }
  void TearDown() override {
    if (!tier_) return;  // the test has seen it end
    tier_->stop();
    queue_.run();
    EXPECT_TRUE(queue_.finished());
  }
  SpilledItem write_one(uint64_t name, const Memory& memory) {
    Written written;
    EXPECT_TRUE(tier_->write(name, memory.piece(), written.done()));
    queue_.run();
    return std::move(written.get()).value();
  }
  uint64_t read(const SpilledItem& item, const Memory& memory, Priority priority, ReadBack& back) {
    return tier_->read(item, memory.piece(), priority, back.done());
  }
  std::vector<uint64_t> taken_transfers() const {
    std::vector<uint64_t> ids;
    for (const auto& taken : queue_.taken) ids.push_back(taken.request.transfer);
    return ids;
  }

  Folder folder_;
  HandQueue queue_;
  std::shared_ptr<TierState> tier_;
};

TEST_F(SpillTierOrder, ADemandReadOvertakesWritesAndPrefetches) {
  Memory memory(2 << 20, 1), other(4 << 20, 2), into(2 << 20);
  const SpilledItem item = write_one(1, memory);
  Written written;
  ReadBack prefetched, demanded;
  const uint64_t write = tier_->write(2, other.piece(), written.done()).value();
  const uint64_t prefetch = read(item, into, Priority::kPrefetch, prefetched);
  ASSERT_TRUE(queue_.take());
  ASSERT_TRUE(queue_.take());  // both have begun
  Memory urgent(2 << 20);
  const uint64_t demand = read(item, urgent, Priority::kDemand, demanded);
  queue_.take_all();
  const std::vector<uint64_t> order = taken_transfers();
  ASSERT_EQ(order.size(), 2u + 2 + 2) << "two of the four writes";
  EXPECT_NE(order[0], order[1]) << "writes and prefetches take turns";
  EXPECT_EQ(order[2], demand);
  EXPECT_EQ(order[3], demand);
  EXPECT_EQ(std::count(order.begin(), order.end(), write), 2);
  EXPECT_EQ(std::count(order.begin(), order.end(), prefetch), 2);
  queue_.run();
  EXPECT_TRUE(demanded.get());
  EXPECT_TRUE(urgent == memory);
  EXPECT_TRUE(written.get());
}

TEST_F(SpillTierOrder, AfterADemandReadTheDeviceHasFewWritesAtATime) {
  Memory memory(1 << 20, 1), other(40 << 20, 2), into(1 << 20);
  const SpilledItem item = write_one(1, memory);
  Written written;
  ASSERT_TRUE(tier_->write(2, other.piece(), written.done()));
  ReadBack demanded;
  read(item, into, Priority::kDemand, demanded);
  queue_.take_all();
  ASSERT_EQ(queue_.taken.size(), 3u);
  EXPECT_FALSE(queue_.taken[0].request.write);
  queue_.end(0);
  EXPECT_TRUE(demanded.get());
  size_t ended = 0;
  for (; queue_.taken.size() == 2; ++ended) {
    queue_.end(0);
    queue_.take_all();
  }
  EXPECT_GE(ended, 8u) << "another such read may come";
  EXPECT_EQ(queue_.taken.size(), 40 - ended) << "none has come";
  queue_.run();
  EXPECT_TRUE(written.get());
  EXPECT_TRUE(into == memory);
}

TEST_F(SpillTierOrder, ARaisedPrefetchGoesFirst) {
  Memory memory(1 << 20, 1), a(1 << 20), b(1 << 20);
  const SpilledItem item = write_one(1, memory);
  ReadBack first, second;
  read(item, a, Priority::kPrefetch, first);
  const uint64_t raised = read(item, b, Priority::kPrefetch, second);
  tier_->raise_priority(raised);
  tier_->raise_priority(999);  // unknown: ignored
  ASSERT_TRUE(queue_.take());
  EXPECT_EQ(queue_.taken[0].request.transfer, raised);
  queue_.run();
  EXPECT_TRUE(first.get());
  EXPECT_TRUE(second.get());
}

TEST_F(SpillTierOrder, CancelWithdrawsOnlyWhatHasNotBegun) {
  Memory memory(2 << 20, 1);
  Written begun, waiting;
  const uint64_t a = tier_->write(1, memory.piece(), begun.done()).value();
  const uint64_t b = tier_->write(2, memory.piece(), waiting.done()).value();
  ASSERT_TRUE(queue_.take());
  tier_->cancel(a);
  tier_->cancel(b);
  tier_->cancel(b);
  EXPECT_FALSE(begun.ready());
  ASSERT_TRUE(waiting.ready()) << "whatever the I/O threads do";
  EXPECT_EQ(tier_->stats().bytes, MiB(2)) << "its room is free";
  const auto cancelled = waiting.get();
  ASSERT_FALSE(cancelled);
  EXPECT_EQ(cancelled.failure().code, FailureCode::kCancelled);
  queue_.run();
  EXPECT_TRUE(begun.get());
}

TEST_F(SpillTierOrder, WhatACancelledTransferHeldIsLetGoOfAtOnce) {
  Memory memory(2 << 20, 1);
  SpilledItem item = write_one(1, memory);
  auto held = std::make_shared<int>();  // what a `done` owns
  std::weak_ptr<int> watch = held;
  Status told = success();
  const uint64_t id = tier_->read(item, memory.piece(), Priority::kPrefetch, [this, held, &told](Status status) {
    told = std::move(status);
    tier_->stats();  // no lock is held
  });
  held.reset();
  item = {};
  tier_->cancel(id);
  EXPECT_TRUE(watch.expired());
  ASSERT_FALSE(told);
  EXPECT_EQ(told.failure().code, FailureCode::kCancelled);
  EXPECT_EQ(tier_->stats().bytes, Bytes(0));
  tier_->cancel(id);
  tier_->raise_priority(id);
  EXPECT_FALSE(queue_.take());
}

TEST_F(SpillTierOrder, CompletionsInAnyOrderMakeTheSameItem) {
  Memory memory(7 << 20, 5), into(7 << 20);
  Written written;
  ASSERT_TRUE(tier_->write(1, memory.piece(), written.done()));
  queue_.take_all();
  std::mt19937 random(1);
  while (!queue_.taken.empty()) {
    EXPECT_FALSE(written.ready());
    queue_.end(random() % queue_.taken.size());
  }
  const SpilledItem item = std::move(written.get()).value();
  ReadBack back;
  read(item, into, Priority::kPrefetch, back);
  queue_.take_all();
  while (!queue_.taken.empty()) queue_.end(queue_.taken.size() - 1);
  EXPECT_TRUE(back.get());
  EXPECT_TRUE(into == memory);
}

TEST_F(SpillTierOrder, StopWithdrawsWhatWaitsAndFinishesWhatBegan) {
  Memory memory(3 << 20, 1);
  auto held = std::make_shared<int>();  // what a `done` owns
  std::weak_ptr<int> watch = held;
  Written begun, waiting;
  ASSERT_TRUE(tier_->write(1, memory.piece(), [held, done = begun.done()](auto result) { done(std::move(result)); }));
  ASSERT_TRUE(tier_->write(2, memory.piece(), waiting.done()));
  held.reset();
  ASSERT_TRUE(queue_.take());
  tier_->stop();
  EXPECT_FALSE(tier_->write(3, memory.piece(), [](auto) { FAIL() << "refused, so never called"; }));
  EXPECT_FALSE(queue_.finished()) << "something is in flight";
  queue_.take_all();
  while (!queue_.taken.empty()) {
    EXPECT_FALSE(watch.expired()) << "the kernel still has the memory";
    queue_.end(0);
  }
  EXPECT_TRUE(watch.expired()) << "let go at once after the call";
  EXPECT_EQ(waiting.get().failure().code, FailureCode::kCancelled);
  EXPECT_TRUE(queue_.finished());
  SpilledItem item = std::move(begun.get()).value();
  std::weak_ptr<TierState> gone = tier_;
  tier_.reset();
  queue_.let_go();
  EXPECT_TRUE(gone.expired()) << "the last thread takes the tier with it";
  EXPECT_EQ(item.size(), MiB(3));
  item = {};  // after the tier
}

TEST_F(SpillTierOrder, AnItemGivesItsRoomBackAfterItsTransfers) {
  Memory memory(1 << 20, 1), into(1 << 20);
  SpilledItem item = write_one(1, memory);
  ReadBack back;
  read(item, into, Priority::kPrefetch, back);
  ASSERT_TRUE(queue_.take());
  item = {};
  EXPECT_EQ(tier_->stats().bytes, MiB(1)) << "a read is in flight from there";
  queue_.run();
  EXPECT_TRUE(back.get());
  EXPECT_EQ(tier_->stats().bytes, Bytes(0));
}

TEST_F(SpillTierOrder, ACallbackMayCallTheTier) {
  Memory memory(1 << 20, 1), into(1 << 20);
  ReadBack back;
  ASSERT_TRUE(tier_->write(1, memory.piece(), [&](Result<SpilledItem> item) {
    read(item.value(), into, Priority::kDemand, back);
    tier_->stats();
  }));
  queue_.run();
  EXPECT_TRUE(back.get());
  EXPECT_TRUE(into == memory);
}

}  // namespace
}  // namespace ebbtide::nvme
