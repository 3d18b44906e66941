// What goes wrong, and what the caller is told: scripted, on real files.
#include "spill_fixture.h"

namespace ebbtide::nvme {
namespace {

using Priority = SpillTier::Priority;

class SpillTierFailure : public ::testing::Test {
 protected:
  void SetUp() override { open(true); }
  void open(bool checksum) {
    close();
    SpillOptions options;
    options.folders = {folder_.path()};
    options.budget = MiB(64);
    options.checksum = checksum;
    tier_ = open_by_hand(queue_, options);
  }
  void close() {
    if (!tier_) return;
    tier_->stop();
    queue_.run();
    queue_.let_go();
    tier_.reset();
    queue_ = HandQueue();
  }
  void TearDown() override { close(); }
  SpilledItem write_one(uint64_t name, const Memory& memory) {
    Written written;
    EXPECT_TRUE(tier_->write(name, memory.piece(), written.done()));
    queue_.run();
    return std::move(written.get()).value();
  }
  /// Where an item's byte lies in the file.
  off_t place(const SpilledItem& item, uint64_t at) const {
    for (const PlacedExtent& placed : TierState::item_of(item).extents) {
      if (at < placed.extent.bytes) return static_cast<off_t>(placed.extent.offset + at);
      at -= placed.extent.bytes;
    }
    throw std::out_of_range("no such byte");
  }
  /// Through a second descriptor, as a fault on the disk would.
  void overwrite(off_t offset, const std::vector<std::byte>& bytes) {
    const std::string path = "/proc/self/fd/" + std::to_string(queue_.fd());
    const int fd = ::open(path.c_str(), O_WRONLY | O_CLOEXEC);
    ASSERT_GE(fd, 0) << std::strerror(errno);
    EXPECT_EQ(::pwrite(fd, bytes.data(), bytes.size(), offset), static_cast<ssize_t>(bytes.size()));
    EXPECT_EQ(::fsync(fd), 0);
    ::close(fd);
  }

  Folder folder_;
  HandQueue queue_;
  std::shared_ptr<TierState> tier_;
};

TEST_F(SpillTierFailure, AWriteErrorIsToldOnceWithPlaceAndErrnoAndThePlaceIsNotUsedAgain) {
  Memory memory(4 << 20, 1), untouched(4 << 20, 1);
  int calls = 0;
  std::optional<Failure> failure;
  ASSERT_TRUE(tier_->write(1, memory.piece(), [&](Result<SpilledItem> result) {
    ++calls;
    if (!result) failure = result.failure();
  }));
  queue_.take_all();
  ASSERT_EQ(queue_.taken.size(), 4u);
  const uint64_t offset = queue_.taken[1].request.offset;
  queue_.end(1, EIO);
  EXPECT_EQ(calls, 0) << "the kernel still has the rest of the memory";
  queue_.run();
  EXPECT_EQ(calls, 1);
  ASSERT_TRUE(failure);
  EXPECT_EQ(failure->code, FailureCode::kIo);
  EXPECT_EQ(failure->system_errno, EIO);
  EXPECT_NE(failure->message.find(folder_.path()), std::string::npos) << failure->message;
  EXPECT_NE(failure->message.find(std::to_string(offset)), std::string::npos) << failure->message;
  EXPECT_TRUE(memory == untouched);
  const SpillStats stats = tier_->stats();
  EXPECT_EQ(stats.quarantined, MiB(4));
  EXPECT_EQ(stats.bytes, Bytes(0));
  EXPECT_EQ(stats.errors, 1);
  EXPECT_TRUE(write_one(2, memory)) << "the tier goes on";
}

TEST_F(SpillTierFailure, AFailedWriteStartsNoFurtherRequests) {
  Memory memory(8 << 20, 1);
  Written written;
  ASSERT_TRUE(tier_->write(1, memory.piece(), written.done()));
  ASSERT_TRUE(queue_.take());
  queue_.end(0, EIO);
  EXPECT_FALSE(queue_.take());
  EXPECT_EQ(written.get().failure().code, FailureCode::kIo);
}

TEST_F(SpillTierFailure, NoSpaceOnReservedRoomIsNoSpaceAndNoQuarantine) {
  Memory memory(1 << 20, 1);
  Written written;
  ASSERT_TRUE(tier_->write(1, memory.piece(), written.done()));
  ASSERT_TRUE(queue_.take());
  queue_.end(0, ENOSPC);
  const auto result = written.get();
  ASSERT_FALSE(result);
  EXPECT_EQ(result.failure().code, FailureCode::kNoSpace);
  EXPECT_EQ(tier_->stats().quarantined, Bytes(0));
}

TEST_F(SpillTierFailure, OverTheBudgetIsSaidAtOnce) {
  Memory memory(65 << 20);
  auto refused = tier_->write(1, memory.piece(), [](auto) { FAIL() << "refused, so never called"; });
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.failure().code, FailureCode::kNoSpace);
}

TEST_F(SpillTierFailure, NoMoreIsWrittenInADayThanIsAllowed) {
  close();
  SpillOptions options;
  options.folders = {folder_.path()};
  options.budget = MiB(64);
  options.most_written_a_day = MiB(5);
  tier_ = open_by_hand(queue_, options);
  Memory memory(2 << 20, 1);
  write_one(1, memory);  // dies at once: what counts is what was written, not what rests
  write_one(2, memory);
  const auto refused = tier_->write(3, memory.piece(), [](auto) { FAIL() << "refused, so never called"; });
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.failure().code, FailureCode::kNoSpace);
  EXPECT_NE(refused.failure().message.find("24 hours"), std::string::npos) << refused.failure().message;
  EXPECT_EQ(tier_->stats().bytes, Bytes(0));
  Memory small(1 << 20, 2);
  EXPECT_TRUE(write_one(4, small));
}

TEST_F(SpillTierFailure, WhatIsNotWrittenDoesNotCountInTheDays) {
  close();
  SpillOptions options;
  options.folders = {folder_.path()};
  options.budget = MiB(64);
  options.most_written_a_day = MiB(5);
  tier_ = open_by_hand(queue_, options);
  Memory memory(5 << 20, 1);
  for (uint64_t i = 0; i < 3; ++i) {  // withdrawn before it began
    Written written;
    const auto id = tier_->write(i, memory.piece(), written.done());
    ASSERT_TRUE(id) << id.failure().message;
    tier_->cancel(id.value());
    EXPECT_FALSE(written.get());
  }
  Written written;
  ASSERT_TRUE(tier_->write(3, memory.piece(), written.done()));
  ASSERT_TRUE(queue_.take());
  queue_.end(0, EIO);  // the other four are never begun
  EXPECT_FALSE(written.get());
  EXPECT_FALSE(tier_->write(4, memory.piece(), [](auto) { FAIL() << "refused, so never called"; }));
  Memory rest(4 << 20, 2);
  EXPECT_TRUE(write_one(5, rest));
  EXPECT_FALSE(tier_->write(6, Memory(1 << 20).piece(), [](auto) { FAIL() << "refused, so never called"; }));
}

TEST_F(SpillTierFailure, AReadErrorIsTriedAgain) {
  Memory memory(2 << 20, 1), into(2 << 20);
  const SpilledItem item = write_one(1, memory);
  ReadBack back;
  tier_->read(item, into.piece(), Priority::kDemand, back.done());
  ASSERT_TRUE(queue_.take());
  queue_.end(0, EIO);
  queue_.run();
  EXPECT_TRUE(back.get());
  EXPECT_TRUE(into == memory);
}

TEST_F(SpillTierFailure, AReadErrorThatStaysIsToldAfterBoundedAttempts) {
  Memory memory(2 << 20, 1), into(2 << 20);
  SpilledItem item = write_one(1, memory);
  ReadBack back;
  tier_->read(item, into.piece(), Priority::kDemand, back.done());
  int attempts = 0;
  for (; queue_.take(); ++attempts) queue_.end(0, EIO);
  EXPECT_GT(attempts, 1);
  EXPECT_LE(attempts, 10);
  const Status status = back.get();
  ASSERT_FALSE(status);
  EXPECT_EQ(status.failure().code, FailureCode::kIo);
  EXPECT_EQ(status.failure().system_errno, EIO);
  item = {};
  EXPECT_EQ(tier_->stats().quarantined, MiB(2));
}

TEST_F(SpillTierFailure, OneFlippedBitIsCorruptAfterOneReRead) {
  Memory memory(3 << 20, 1), into(3 << 20);
  const SpilledItem item = write_one(1, memory);
  const size_t at = (2 << 20) + 12'345;
  overwrite(place(item, at), {memory.data()[at] ^ std::byte{4}});
  ReadBack back;
  tier_->read(item, into.piece(), Priority::kDemand, back.done());
  size_t requests = 0;
  for (; queue_.take(); ++requests) queue_.end(0);
  EXPECT_EQ(requests, 4u) << "three chunks, one of them twice";
  const Status status = back.get();
  ASSERT_FALSE(status);
  EXPECT_EQ(status.failure().code, FailureCode::kCorrupt);
  EXPECT_NE(status.failure().message.find(folder_.path()), std::string::npos);
}

TEST_F(SpillTierFailure, ABitFlippedOnTheWayIsReadAgain) {
  Memory memory(1 << 20, 1), into(1 << 20);
  const SpilledItem item = write_one(1, memory);
  const off_t where = place(item, 100);
  overwrite(where, {memory.data()[100] ^ std::byte{1}});
  ReadBack back;
  tier_->read(item, into.piece(), Priority::kDemand, back.done());
  ASSERT_TRUE(queue_.take());
  queue_.end(0);
  overwrite(where, {memory.data()[100]});
  queue_.run();
  EXPECT_TRUE(back.get());
  EXPECT_TRUE(into == memory);
}

TEST_F(SpillTierFailure, TheBytesOfAnotherItemAreCorrupt) {
  Memory a(1 << 20, 1), b(1 << 20, 2), into(1 << 20);
  const SpilledItem first = write_one(1, a);
  overwrite(place(first, 0), std::vector<std::byte>(b.data(), b.data() + b.bytes()));  // a stale extent
  ReadBack back;
  tier_->read(first, into.piece(), Priority::kPrefetch, back.done());
  queue_.run();
  EXPECT_EQ(back.get().failure().code, FailureCode::kCorrupt);
}

/// The identity is in the sum: the same bytes under another name, or of another write, do not pass.
TEST_F(SpillTierFailure, TheSameBytesUnderAnotherNameHaveAnotherSum) {
  Memory memory(1 << 20, 1);
  const SpilledItem a = write_one(1, memory), b = write_one(2, memory), again = write_one(1, memory);
  EXPECT_NE(TierState::item_of(a).checksums, TierState::item_of(b).checksums);
  EXPECT_NE(TierState::item_of(a).checksums, TierState::item_of(again).checksums);
}

TEST_F(SpillTierFailure, WithoutChecksumsNothingIsSaidOfCorruption) {
  open(false);
  Memory memory(1 << 20, 1), into(1 << 20);
  const SpilledItem item = write_one(1, memory);
  overwrite(place(item, 0), {memory.data()[0] ^ std::byte{1}});
  ReadBack back;
  tier_->read(item, into.piece(), Priority::kDemand, back.done());
  queue_.run();
  EXPECT_TRUE(back.get());
  EXPECT_FALSE(into == memory);
}

TEST_F(SpillTierFailure, WhatMakesNoSenseIsRefusedAtOnce) {
  Memory memory(1 << 20), smaller(1 << 19);
  const SpilledItem item = write_one(1, memory);
  const auto never = [](auto) { FAIL() << "refused, so never called"; };
  EXPECT_EQ(tier_->write(1, {}, never).failure().code, FailureCode::kInvalid);
  if (tier_->alignment().memory > 1) {
    EXPECT_EQ(tier_->write(1, {{memory.data() + 1, 4096}}, never).failure().code, FailureCode::kInvalid);
    EXPECT_EQ(tier_->write(1, {{memory.data(), 4097}}, never).failure().code, FailureCode::kInvalid);
  }
  for (const SpilledItem& wrong : {item, SpilledItem()}) {
    ReadBack back;
    EXPECT_EQ(tier_->read(wrong, smaller.piece(), Priority::kDemand, back.done()), 0u);
    ASSERT_TRUE(back.ready());
    EXPECT_EQ(back.get().failure().code, FailureCode::kInvalid);
  }
}

}  // namespace
}  // namespace ebbtide::nvme
