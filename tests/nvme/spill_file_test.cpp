#include "spill_fixture.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include <fstream>

#include "loop_disk.h"

namespace ebbtide::nvme {
namespace {

TEST(SpillFile, HasNoNameAndIsItsOwners) {
  Folder folder;
  auto file = SpillFile::open(folder.path());
  ASSERT_TRUE(file) << file.failure().message;
  EXPECT_TRUE(folder.empty());
  struct stat status {};
  ASSERT_EQ(::fstat(file.value().fd(), &status), 0);
  EXPECT_EQ(status.st_nlink, 0u);
  EXPECT_EQ(status.st_mode & 0777, 0600u);
  EXPECT_TRUE(::fcntl(file.value().fd(), F_GETFD) & FD_CLOEXEC);
}

TEST(SpillFile, AlignmentIsWhatWorks) {
  Folder folder;
  auto file = SpillFile::open(folder.path());
  ASSERT_TRUE(file);
  const IoAlignment align = file.value().alignment();
  if (align.length == 1) GTEST_SKIP() << "no direct I/O: " << file.value().description();
  Memory memory(8192);
  std::byte* const from = align.memory <= 512 ? memory.data() : memory.page();
  ASSERT_EQ(reinterpret_cast<uintptr_t>(from) % align.memory, 0u);
  EXPECT_EQ(::pwrite(file.value().fd(), from, align.length, 0), static_cast<ssize_t>(align.length));
  EXPECT_NE(file.value().description().find("direct I/O"), std::string::npos);
}

TEST(SpillFile, ATrialIsBelievedOnlyWhereWhatCannotBeDirectIsRefused) {
  EXPECT_EQ(least_alignment(EXT4_SUPER_MAGIC, 4096), 512u);
  EXPECT_EQ(least_alignment(XFS_SUPER_MAGIC, 4096), 512u);
  EXPECT_EQ(least_alignment(BTRFS_SUPER_MAGIC, 4096), 4096u);
  EXPECT_EQ(least_alignment(F2FS_SUPER_MAGIC, 4096), 4096u);
  const unsigned long unknown = 1;
  EXPECT_EQ(least_alignment(unknown, 1024), 1024u);
  EXPECT_EQ(least_alignment(unknown, 1 << 20), 4096u) << "of network file systems: what one transfer is best of";
  EXPECT_EQ(least_alignment(unknown, 1), 512u);
}

TEST(SpillFile, OnBtrfsItIsOverwrittenInPlaceByWholeBlocks) {
  auto disk = LoopDisk::make(size_t{256} << 20, ::testing::TempDir(), "btrfs");
  if (!disk) GTEST_SKIP() << disk.failure().message;
  auto opened = SpillFile::open(disk.value()->path());
  ASSERT_TRUE(opened) << opened.failure().message;
  SpillFile file = std::move(opened).value();
  EXPECT_GE(file.alignment().memory, 4096u) << file.description();
  EXPECT_GE(file.alignment().length, 4096u);
  int flags = 0;
  ASSERT_EQ(::ioctl(file.fd(), FS_IOC_GETFLAGS, &flags), 0);
  EXPECT_TRUE(flags & FS_NOCOW_FL);
}

TEST(SpillFile, GrowsWithBlocksReserved) {
  Folder folder;
  auto file = SpillFile::open(folder.path());
  ASSERT_TRUE(file);
  ASSERT_TRUE(file.value().grow(1 << 20));
  ASSERT_TRUE(file.value().grow(3 << 20));
  struct stat status {};
  ASSERT_EQ(::fstat(file.value().fd(), &status), 0);
  EXPECT_EQ(status.st_size, 3 << 20);
  EXPECT_GE(status.st_blocks * 512, 3 << 20);
}

TEST(SpillFile, RefusesWhatIsNoFolder) {
  Folder folder;
  auto missing = SpillFile::open(folder.path() + "/missing");
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.failure().code, FailureCode::kInvalid);
  EXPECT_EQ(missing.failure().system_errno, ENOENT);
  EXPECT_NE(missing.failure().message.find(folder.path() + "/missing"), std::string::npos);

  std::ofstream(folder.path() + "/file") << "x";
  auto file = SpillFile::open(folder.path() + "/file");
  ASSERT_FALSE(file);
  EXPECT_EQ(file.failure().code, FailureCode::kInvalid);
  EXPECT_EQ(file.failure().system_errno, ENOTDIR);
}

TEST(SpillFile, WithoutDirectIoItIsBufferedAndLeavesNoName) {
  Folder folder;
  if (!folder.mount("ramfs", "")) GTEST_SKIP() << "cannot mount: " << std::strerror(errno);
  auto file = SpillFile::open(folder.path());
  ASSERT_TRUE(file) << file.failure().message;
  EXPECT_TRUE(folder.empty());
  EXPECT_EQ(file.value().alignment().length, 1u);
  EXPECT_NE(file.value().description().find("buffered"), std::string::npos) << file.value().description();
}

TEST(SpillFile, CallsTmpfsRamAndKeepsItsSizeWhenFull) {
  Folder folder;
  if (!folder.mount_tmpfs("4m")) GTEST_SKIP() << "cannot mount: " << std::strerror(errno);
  auto opened = SpillFile::open(folder.path());
  ASSERT_TRUE(opened) << opened.failure().message;
  SpillFile file = std::move(opened).value();
  EXPECT_TRUE(file.ram());
  EXPECT_NE(file.description().find("RAM"), std::string::npos);
  ASSERT_TRUE(file.grow(2 << 20));
  Status full = file.grow(64 << 20);
  ASSERT_FALSE(full);
  EXPECT_EQ(full.failure().code, FailureCode::kNoSpace);
  EXPECT_EQ(full.failure().system_errno, ENOSPC);
  struct stat status {};
  ASSERT_EQ(::fstat(file.fd(), &status), 0);
  EXPECT_EQ(status.st_size, 2 << 20);
  EXPECT_EQ(file.size(), uint64_t{2} << 20);
}

}  // namespace
}  // namespace ebbtide::nvme
