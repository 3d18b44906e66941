// Disks that fail, really. What may go wrong, and the test that makes it so:
//
//   disk full                      ADiskThatSomebodyElseFillsComesBack; SpillTierContract.AFullDiskIsAValueAndTheTierGoesOn
//   no room for reserved bytes     NoRoomBehindReservedBytesKeepsTheMemory
//   quota                          FuseDisk.AQuotaIsAFullDisk… (many kernels have none for loop devices and tmpfs)
//   device error                   ADeadDeviceIsAnErrorAndNeverBytes; FuseDisk.*
//   short transfers                AFileSizeLimitLoweredLaterIsAFullDiskAndNoSignal; FuseDisk.*
//   EAGAIN, EINTR, odd orders      SpillTierSchedule; IoQueueContract
//   hung device                    AHungDeviceIsToldAndItsMemoryKept, WhatIsCancelledWhileADeviceHangsEndsAtOnce
//   slow device                    AThrottledFolderGetsLess
//   killed process                 SpillTierProcess.KilledAtAnyMomentItLeavesNothing
//   io_uring forbidden             SpillTierProcess, IoUring/Forbidden
//   no memory may be locked        WorksForAUserWhoMayLockNoMemory
//   read before its write ends     SpillTierOrder; StoreCoreTest: a record stays readable while it leaves
//   wrong or stale bytes           SpillTierFailure.OneFlippedBit…, TheBytesOfAnotherItem…; FuseDisk.WrongBytes…
//   neighbours                     SpillTierProcess.TwoProcessesShareAFolder, ANeighboursDeathGivesItsRoomBack
//   the folder is removed          AFolderThatIsRemovedKeepsWhatItHas
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <csignal>
#include <fstream>

#include "child.h"
#include "fuse_disk.h"
#include "loop_disk.h"
#include "spill_fixture.h"
#include "tests/support/eventually.h"

namespace ebbtide::nvme {
namespace {

using Priority = SpillTier::Priority;

/// On both queues.
class SpillTierDisk : public ::testing::TestWithParam<bool> {
 protected:
  static constexpr size_t kDiskBytes = size_t{64} << 20;

  /// False: the test is skipped.
  bool make_disk(const std::string& image_folder = ::testing::TempDir()) {
    auto disk = LoopDisk::make(kDiskBytes, image_folder);
    if (disk)
      disk_ = std::move(disk).value();
    else
      why_not_ = disk.failure().message;
    return disk_ != nullptr;
  }
  SpillOptions options(const std::string& folder, Bytes budget = GiB(1)) const {
    SpillOptions options;
    options.folders = {folder};
    options.budget = budget;
    options.allow_io_uring = GetParam();
    return options;
  }
  std::unique_ptr<SpillTier> open(const SpillOptions& options) {
    auto tier = SpillTier::open(options);
    if (!tier) throw std::runtime_error(tier.failure().message);
    return std::move(tier).value();
  }

  std::unique_ptr<LoopDisk> disk_;
  std::string why_not_;
};

INSTANTIATE_TEST_SUITE_P(Both, SpillTierDisk, ::testing::Values(true, false),
                         [](const auto& info) { return info.param ? "Uring" : "Threads"; });

TEST_P(SpillTierDisk, ADiskThatSomebodyElseFillsComesBack) {
  if (!make_disk()) GTEST_SKIP() << why_not_;
  auto tier = open(options(disk_->path(), MiB(48)));
  Memory memory(3 << 20, 1), in(3 << 20);
  const SpilledItem before = write_now(*tier, 1, memory.piece());
  ASSERT_TRUE(disk_->fill());
  std::vector<SpilledItem> items;
  std::optional<Failure> full;
  for (uint64_t i = 2; i < 100 && !full; ++i) {  // what was reserved before is still ours
    Written written;
    auto id = tier->write(i, memory.piece(), written.done());
    if (id)
      items.push_back(std::move(written.get()).value());
    else
      full = id.failure();
  }
  ASSERT_TRUE(full);
  EXPECT_EQ(full->code, FailureCode::kNoSpace);
  EXPECT_TRUE(read_now(*tier, before, in.piece()));
  EXPECT_TRUE(in == memory);
  disk_->free_what_fill_took();
  SpilledItem after;
  EXPECT_TRUE(test::eventually([&] {
    Written written;
    auto id = tier->write(100, memory.piece(), written.done());
    if (id) after = std::move(written.get()).value();
    return id.ok();
  })) << "the tier did not come back";
  Memory back(3 << 20);
  EXPECT_TRUE(read_now(*tier, after, back.piece()));
  EXPECT_TRUE(back == memory);
}

TEST_P(SpillTierDisk, AFailedGrowthLeavesTheFileAsItWas) {
  if (!make_disk()) GTEST_SKIP() << why_not_;
  auto opened = SpillFile::open(disk_->path());
  ASSERT_TRUE(opened);
  SpillFile file = std::move(opened).value();
  ASSERT_TRUE(file.grow(8 << 20));
  struct stat before {
  }, after{};
  ASSERT_EQ(::fstat(file.fd(), &before), 0);
  const Status full = file.grow(uint64_t{1} << 30);
  ASSERT_FALSE(full);
  EXPECT_EQ(full.failure().code, FailureCode::kNoSpace);
  ASSERT_EQ(::fstat(file.fd(), &after), 0);
  EXPECT_EQ(after.st_size, before.st_size);
  EXPECT_LT(after.st_blocks, before.st_blocks + 128) << "ext4 keeps what it took before it found the end";
}

/// The image lies in a RAM file system that is smaller than the image says.
TEST_P(SpillTierDisk, NoRoomBehindReservedBytesKeepsTheMemory) {
  Folder beneath;
  if (!beneath.mount_tmpfs("24m")) GTEST_SKIP() << "cannot mount: " << std::strerror(errno);
  if (!make_disk(beneath.path())) GTEST_SKIP() << why_not_;
  auto tier = open(options(disk_->path(), MiB(48)));
  Memory memory(3 << 20, 1), untouched(3 << 20, 1), in(3 << 20);
  std::vector<SpilledItem> items;
  std::optional<Failure> failure;
  for (uint64_t i = 0; i < 16 && !failure; ++i) {
    Written written;
    auto id = tier->write(i, memory.piece(), written.done());
    ASSERT_TRUE(id) << id.failure().message;
    auto item = written.get();
    if (item)
      items.push_back(std::move(item).value());
    else
      failure = item.failure();
  }
  ASSERT_TRUE(failure) << "the file system beneath holds less than half";
  EXPECT_TRUE(failure->code == FailureCode::kNoSpace ||
              failure->code == FailureCode::kIo);  // as the loop device says it
  EXPECT_NE(failure->system_errno, 0);
  EXPECT_NE(failure->message.find(disk_->path()), std::string::npos);
  EXPECT_TRUE(memory == untouched);
  ASSERT_GE(items.size(), 2u);
  for (const SpilledItem& item : items) {
    // The file system may lose what it has taken, since its own blocks found no room either.
    const Status status = read_now(*tier, item, in.piece());
    if (status)
      EXPECT_TRUE(in == memory);
    else
      EXPECT_TRUE(status.failure().code == FailureCode::kCorrupt || status.failure().code == FailureCode::kIo);
  }
  tier.reset();
  items.clear();
  disk_.reset();
}

TEST_P(SpillTierDisk, ADeadDeviceIsAnErrorAndNeverBytes) {
  if (!make_disk()) GTEST_SKIP() << why_not_;
  auto tier = open(options(disk_->path()));
  Memory memory(3 << 20, 1), untouched(3 << 20, 1), in(3 << 20, 2);
  const SpilledItem item = write_now(*tier, 1, memory.piece());
  { const SpilledItem room = write_now(*tier, 2, memory.piece()); }  // for a write that finds its place reserved
  const int error = disk_->shut_down();
  if (error != 0) GTEST_SKIP() << "this kernel cannot shut ext4 down: " << std::strerror(error);
  const Status read = read_now(*tier, item, in.piece());
  ASSERT_FALSE(read);
  EXPECT_EQ(read.failure().code, FailureCode::kIo);
  EXPECT_EQ(read.failure().system_errno, EIO);
  EXPECT_NE(read.failure().message.find(disk_->path()), std::string::npos) << read.failure().message;
  EXPECT_NE(read.failure().message.find("offset"), std::string::npos) << read.failure().message;
  Written written;
  auto id = tier->write(3, memory.piece(), written.done());
  ASSERT_TRUE(id) << id.failure().message;
  const auto failed = written.get();
  ASSERT_FALSE(failed);
  EXPECT_EQ(failed.failure().code, FailureCode::kIo);
  EXPECT_EQ(failed.failure().system_errno, EIO);
  EXPECT_TRUE(memory == untouched);
  EXPECT_GT(tier->stats().quarantined, Bytes(0));
  EXPECT_GT(tier->stats().errors, 1) << "a read is tried more than once";
}

TEST_P(SpillTierDisk, AHungDeviceIsToldAndItsMemoryKept) {
  if (!make_disk()) GTEST_SKIP() << why_not_;
  auto tier = open(options(disk_->path()));
  Memory memory(2 << 20, 1), in(2 << 20);
  { const SpilledItem room = write_now(*tier, 1, memory.piece()); }
  Written written;
  {
    const Freeze freeze(disk_->path());
    if (freeze.error() != 0) GTEST_SKIP() << "cannot freeze: " << std::strerror(freeze.error());
    ASSERT_TRUE(tier->write(2, memory.piece(), written.done()));
    EXPECT_TRUE(test::eventually([&] { return tier->stats().folders[0].silent_s > 0.2; }));
    EXPECT_FALSE(written.ready()) << "the kernel still has the memory";
  }
  const SpilledItem item = std::move(written.get()).value();
  EXPECT_TRUE(read_now(*tier, item, in.piece()));
  EXPECT_TRUE(in == memory);
  tier->close();
  EXPECT_EQ(tier->stats().folders[0].silent_s, 0);
}

TEST_P(SpillTierDisk, WhatIsCancelledWhileADeviceHangsEndsAtOnce) {
  if (!make_disk()) GTEST_SKIP() << why_not_;
  auto tier = open(options(disk_->path()));
  constexpr size_t kWrites = 10, kBegun = 4;  // of 4 MiB each: more than a queue has in flight
  Memory memory(4 << 20, 1);
  std::vector<Written> written(kWrites);
  std::vector<SpillTier::TransferId> ids;
  const auto write_all = [&] {
    for (size_t i = 0; i < kWrites; ++i)
      ids.push_back(tier->write(ids.size() + 1, memory.piece(), written[i].done()).value());
  };
  write_all();
  for (Written& one : written) EXPECT_TRUE(one.get());  // from now on there is room in the file
  ids.clear();
  written = std::vector<Written>(kWrites);
  {
    const Freeze freeze(disk_->path());
    if (freeze.error() != 0) GTEST_SKIP() << "cannot freeze: " << std::strerror(freeze.error());
    write_all();
    EXPECT_TRUE(test::eventually([&] { return tier->stats().folders[0].silent_s > 0.2; }));
    for (size_t i = kBegun; i < kWrites; ++i) tier->cancel(ids[i]);
    for (size_t i = kBegun; i < kWrites; ++i) EXPECT_TRUE(written[i].ready()) << i;
    EXPECT_EQ(tier->stats().bytes, MiB(4.0 * kBegun)) << "the room of those is free";
    EXPECT_FALSE(written[0].ready()) << "the kernel still has the memory";
  }
  for (size_t i = 0; i < kWrites; ++i) {
    const auto result = written[i].get();
    EXPECT_EQ(result.ok(), i < kBegun) << i;
    if (!result.ok()) EXPECT_EQ(result.failure().code, FailureCode::kCancelled);
  }
}

/// A control group of this test's, whose processes write to one disk at most so many bytes a second.
class WriteLimit {
 public:
  WriteLimit(const std::string& device_number, int64_t bytes_per_second)
      : group_("/sys/fs/cgroup/blkio/ebbtide-test-" + std::to_string(::getpid())) {
    if (::mkdir(group_.c_str(), 0700) != 0) {
      error_ = errno;
      return;
    }
    made_ = true;
    error_ = put("blkio.throttle.write_bps_device", device_number + " " + std::to_string(bytes_per_second));
  }
  WriteLimit(const WriteLimit&) = delete;
  WriteLimit& operator=(const WriteLimit&) = delete;
  ~WriteLimit() {
    if (made_) ::rmdir(group_.c_str());
  }
  int error() const { return error_; }
  /// Of the calling process. 0 or an errno.
  int enter() const { return put("cgroup.procs", std::to_string(::getpid())); }

 private:
  int put(const std::string& file, const std::string& text) const {
    const int fd = ::open((group_ + "/" + file).c_str(), O_WRONLY | O_CLOEXEC);
    if (fd < 0) return errno;
    const int error = ::write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size()) ? 0 : errno;
    ::close(fd);
    return error;
  }
  const std::string group_;
  bool made_ = false;
  int error_ = 0;
};

TEST_P(SpillTierDisk, AThrottledFolderGetsLess) {
  Folder fast;
  if (!make_disk()) GTEST_SKIP() << why_not_;
  if (!fast.mount_tmpfs("64m")) GTEST_SKIP() << "cannot mount: " << std::strerror(errno);
  const WriteLimit limit(disk_->device_number(), 8 << 20);
  if (limit.error() != 0) GTEST_SKIP() << "no blkio control group (v1): " << std::strerror(limit.error());
  const int status = in_child([&] {
    if (limit.enter() != 0) return 77;
    SpillOptions both = options(disk_->path(), MiB(64));
    both.folders.push_back(fast.path());
    both.reserve = Bytes(0);
    auto tier = SpillTier::open(both);
    if (!tier) return 1;
    // Until both speeds are known, each gets its half; then nearly all goes to the other.
    Memory memory(2 << 20, 1), in(2 << 20);
    for (uint64_t i = 0; tier.value()->stats().folders[0].share > 0.2; ++i) {
      if (i == 1000) return 2;
      const SpilledItem item = write_now(*tier.value(), i, memory.piece());
      if (!read_now(*tier.value(), item, in.piece()) || !(in == memory)) return 3;
    }
    return 0;
  });
  if (status == 77) GTEST_SKIP() << "cannot enter a control group";
  EXPECT_EQ(status, 0);
}

TEST_P(SpillTierDisk, AFileSizeLimitLoweredLaterIsAFullDiskAndNoSignal) {
  const Folder folder;
  const int status = in_child([&] {
    auto tier = SpillTier::open(options(folder.path(), MiB(64)));
    if (!tier) return 1;
    Memory memory(4 << 20, 1), untouched(4 << 20, 1), in(4 << 20);
    const SpilledItem low = write_now(*tier.value(), 1, memory.piece());
    { const SpilledItem room = write_now(*tier.value(), 2, memory.piece()); }
    // Within the second item's bytes, and no multiple of a chunk: one transfer is cut short, the rest is refused.
    const rlimit limit{(5 << 20) + 4096 * 3, (5 << 20) + 4096 * 3};
    if (::setrlimit(RLIMIT_FSIZE, &limit) != 0) return 2;
    Written written;
    if (!tier.value()->write(3, memory.piece(), written.done())) return 3;
    const auto refused = written.get();
    if (refused.ok() || refused.failure().code != FailureCode::kNoSpace || refused.failure().system_errno != EFBIG)
      return 4;
    if (!(memory == untouched)) return 5;
    return read_now(*tier.value(), low, in.piece()) && in == memory ? 0 : 6;
  });
  EXPECT_EQ(status, 0);
}

TEST_P(SpillTierDisk, WorksForAUserWhoMayLockNoMemory) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root can become somebody else";
  const Folder folder;
  ASSERT_EQ(::chmod(folder.path().c_str(), 0777), 0);
  const int status = in_child([&] {
    const rlimit none{0, 0};
    constexpr uid_t kNobody = 65534;
    if (::setrlimit(RLIMIT_MEMLOCK, &none) != 0 || ::setgid(kNobody) != 0 || ::setuid(kNobody) != 0) return 1;
    auto tier = SpillTier::open(options(folder.path(), MiB(64)));
    if (!tier) return 2;
    Memory memory(5 << 20, 1), in(5 << 20);
    const auto watcher = tier.value()->watcher();
    watcher->came(memory.data(), memory.bytes());  // refused by the kernel, and served all the same
    const SpilledItem item = write_now(*tier.value(), 1, memory.piece());
    if (!read_now(*tier.value(), item, in.piece()) || !(in == memory)) return 3;
    return tier.value()->stats().registered == Bytes(0) ? 0 : 4;
  });
  EXPECT_EQ(status, 0);
}

TEST_P(SpillTierDisk, AFolderThatIsRemovedKeepsWhatItHas) {
  const Folder outer;
  const std::string folder = outer.path() + "/inner";
  ASSERT_EQ(::mkdir(folder.c_str(), 0700), 0);
  auto tier = open(options(folder, MiB(64)));
  Memory memory(3 << 20, 1), in(3 << 20);
  const SpilledItem before = write_now(*tier, 1, memory.piece());
  ASSERT_EQ(::rmdir(folder.c_str()), 0) << std::strerror(errno);
  std::vector<SpilledItem> items;
  for (uint64_t i = 2; i < 10; ++i) items.push_back(write_now(*tier, i, memory.piece()));  // the file grows meanwhile
  items.push_back(before);
  for (const SpilledItem& item : items) {
    in.fill(3);
    EXPECT_TRUE(read_now(*tier, item, in.piece()));
    EXPECT_TRUE(in == memory);
  }
  const auto second = SpillTier::open(options(folder, MiB(64)));
  ASSERT_FALSE(second);
  EXPECT_EQ(second.failure().system_errno, ENOENT);
}

/// A file system whose every answer is the test's.
class FuseDiskTest : public SpillTierDisk {
 protected:
  /// False: the test is skipped.
  bool open_on_fuse() {
    auto disk = FuseDisk::make(::testing::TempDir());
    if (!disk) {
      why_not_ = disk.failure().message;
      return false;
    }
    fuse_ = std::move(disk).value();
    tier_ = open(options(fuse_->path(), MiB(64)));
    return true;
  }
  void TearDown() override {
    if (tier_) tier_->close();
  }

  std::unique_ptr<FuseDisk> fuse_;
  std::unique_ptr<SpillTier> tier_;
};

INSTANTIATE_TEST_SUITE_P(Both, FuseDiskTest, ::testing::Values(true, false),
                         [](const auto& info) { return info.param ? "Uring" : "Threads"; });

TEST_P(FuseDiskTest, WhereNoFileCanBeWithoutANameItLosesItAtOnce) {
  if (!open_on_fuse()) GTEST_SKIP() << why_not_;
  EXPECT_EQ(fuse_->named_files(), 0u);
  Memory memory(5 << 20, 1), in(5 << 20);
  const SpilledItem item = write_now(*tier_, 1, memory.piece());
  EXPECT_TRUE(read_now(*tier_, item, in.piece()));
  EXPECT_TRUE(in == memory);
}

/// io_uring, were it used here, would write the rest over the beginning.
TEST_P(FuseDiskTest, ShortTransfersAreResumed) {
  if (!open_on_fuse()) GTEST_SKIP() << why_not_;
  EXPECT_FALSE(tier_->stats().io_uring);
  std::atomic<int> cut = 0;
  fuse_->answer_with([&](bool, uint64_t offset, uint32_t bytes) {
    if (bytes <= 4096) return static_cast<int>(bytes);
    ++cut;
    return static_cast<int>(offset % 3 == 0 ? bytes / 2 : bytes - 700);
  });
  Memory memory(3 << 20, 1), in(3 << 20);
  const SpilledItem item = write_now(*tier_, 1, memory.piece());
  const int cut_writes = cut;
  EXPECT_GT(cut_writes, 0);
  EXPECT_TRUE(read_now(*tier_, item, in.piece()));
  EXPECT_GT(cut, cut_writes);
  EXPECT_TRUE(in == memory);
  EXPECT_EQ(tier_->stats().errors, 0);
}

TEST_P(FuseDiskTest, AFailedWriteKeepsTheMemoryAndLeavesThePlaceAlone) {
  if (!open_on_fuse()) GTEST_SKIP() << why_not_;
  std::atomic<uint64_t> bad = ~uint64_t{0};
  std::atomic<int> again = 0;
  fuse_->answer_with([&](bool write, uint64_t offset, uint32_t bytes) {
    uint64_t none = ~uint64_t{0};
    if (write && bad.compare_exchange_strong(none, offset)) return -EIO;
    again += write && offset <= bad && bad < offset + bytes;
    return static_cast<int>(bytes);
  });
  Memory memory(3 << 20, 1), untouched(3 << 20, 1), in(3 << 20);
  Written written;
  ASSERT_TRUE(tier_->write(1, memory.piece(), written.done()));
  const auto failed = written.get();
  ASSERT_FALSE(failed);
  EXPECT_EQ(failed.failure().code, FailureCode::kIo);
  EXPECT_EQ(failed.failure().system_errno, EIO);
  EXPECT_TRUE(memory == untouched);
  std::vector<SpilledItem> items;
  for (uint64_t i = 2; i < 12; ++i) items.push_back(write_now(*tier_, i, memory.piece()));
  EXPECT_EQ(again, 0);
  for (const SpilledItem& item : items) {
    EXPECT_TRUE(read_now(*tier_, item, in.piece()));
    EXPECT_TRUE(in == memory);
  }
}

TEST_P(FuseDiskTest, AQuotaIsAFullDiskAndTheTierComesBack) {
  if (!open_on_fuse()) GTEST_SKIP() << why_not_;
  Memory memory(3 << 20, 1), in(3 << 20);
  const SpilledItem before = write_now(*tier_, 1, memory.piece());
  fuse_->refuse_growth(EDQUOT);
  std::vector<SpilledItem> items;
  std::optional<Failure> full;
  while (items.size() < 30 && !full) {  // what was reserved before is still ours
    Written written;
    auto id = tier_->write(2 + items.size(), memory.piece(), written.done());
    if (id)
      items.push_back(std::move(written.get()).value());
    else
      full = id.failure();
  }
  ASSERT_TRUE(full);
  EXPECT_EQ(full->code, FailureCode::kNoSpace);
  EXPECT_EQ(full->system_errno, EDQUOT);
  EXPECT_NE(full->message.find(fuse_->path()), std::string::npos) << full->message;
  EXPECT_TRUE(read_now(*tier_, before, in.piece()));
  EXPECT_TRUE(in == memory);
  fuse_->refuse_growth(0);
  SpilledItem after;
  EXPECT_TRUE(test::eventually([&] {
    Written written;
    auto id = tier_->write(100, memory.piece(), written.done());
    if (id) after = std::move(written.get()).value();
    return id.ok();
  })) << "the tier did not come back";
  in.fill(2);
  EXPECT_TRUE(read_now(*tier_, after, in.piece()));
  EXPECT_TRUE(in == memory);
}

/// A file system that charges for bytes when they are written, and not when they are reserved.
TEST_P(FuseDiskTest, AQuotaMetByAWriteKeepsTheMemoryAndThePlace) {
  if (!open_on_fuse()) GTEST_SKIP() << why_not_;
  std::atomic<bool> over = true;
  fuse_->answer_with(
      [&](bool write, uint64_t, uint32_t bytes) { return write && over ? -EDQUOT : static_cast<int>(bytes); });
  Memory memory(3 << 20, 1), untouched(3 << 20, 1), in(3 << 20);
  Written written;
  ASSERT_TRUE(tier_->write(1, memory.piece(), written.done()));
  const auto failed = written.get();
  ASSERT_FALSE(failed);
  EXPECT_EQ(failed.failure().code, FailureCode::kNoSpace);
  EXPECT_EQ(failed.failure().system_errno, EDQUOT);
  EXPECT_TRUE(memory == untouched);
  EXPECT_EQ(tier_->stats().quarantined, Bytes(0)) << "nothing is wrong with the place";
  over = false;
  const SpilledItem item = write_now(*tier_, 2, memory.piece());
  EXPECT_TRUE(read_now(*tier_, item, in.piece()));
  EXPECT_TRUE(in == memory);
}

/// On the way through the file system, or at rest there.
TEST_P(FuseDiskTest, WrongBytesAreCorruptAndNotHandedOver) {
  if (!open_on_fuse()) GTEST_SKIP() << why_not_;
  Memory memory(3 << 20, 1), in(3 << 20);
  const SpilledItem item = write_now(*tier_, 1, memory.piece());
  fuse_->flip_bits(true);
  const Status status = read_now(*tier_, item, in.piece());
  ASSERT_FALSE(status);
  EXPECT_EQ(status.failure().code, FailureCode::kCorrupt);
  EXPECT_NE(status.failure().message.find(fuse_->path()), std::string::npos) << status.failure().message;
}

TEST_P(FuseDiskTest, AReadThatFailsOnceIsRead) {
  if (!open_on_fuse()) GTEST_SKIP() << why_not_;
  Memory memory(3 << 20, 1), in(3 << 20);
  const SpilledItem item = write_now(*tier_, 1, memory.piece());
  std::atomic<int> failures = 0;
  fuse_->answer_with(
      [&](bool write, uint64_t, uint32_t bytes) { return !write && failures++ == 0 ? -EIO : static_cast<int>(bytes); });
  EXPECT_TRUE(read_now(*tier_, item, in.piece()));
  EXPECT_TRUE(in == memory);
  EXPECT_EQ(tier_->stats().errors, 1);
}

TEST_P(FuseDiskTest, AReadThatKeepsFailingIsToldWithItsErrno) {
  if (!open_on_fuse()) GTEST_SKIP() << why_not_;
  Memory memory(3 << 20, 1), in(3 << 20);
  const SpilledItem item = write_now(*tier_, 1, memory.piece());
  fuse_->answer_with(
      [&](bool write, uint64_t, uint32_t bytes) { return write ? static_cast<int>(bytes) : -EREMOTEIO; });
  const Status status = read_now(*tier_, item, in.piece());
  ASSERT_FALSE(status);
  EXPECT_EQ(status.failure().code, FailureCode::kIo);
  EXPECT_EQ(status.failure().system_errno, EREMOTEIO);
  EXPECT_NE(status.failure().message.find(fuse_->path()), std::string::npos);
}

TEST_P(FuseDiskTest, AFileSystemThatGoesAwayIsAnError) {
  if (!open_on_fuse()) GTEST_SKIP() << why_not_;
  Memory memory(3 << 20, 1), in(3 << 20);
  const SpilledItem item = write_now(*tier_, 1, memory.piece());
  fuse_.reset();
  const Status status = read_now(*tier_, item, in.piece());
  ASSERT_FALSE(status);
  EXPECT_EQ(status.failure().code, FailureCode::kIo);
  EXPECT_NE(status.failure().system_errno, 0);
}

}  // namespace
}  // namespace ebbtide::nvme
