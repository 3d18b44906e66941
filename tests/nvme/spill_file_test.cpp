#include "spill_fixture.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <fstream>

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
  ASSERT_EQ(512 % align.memory, 0u) << "the fixture's memory is aligned to 512";
  EXPECT_EQ(::pwrite(file.value().fd(), memory.data(), align.length, 0), static_cast<ssize_t>(align.length));
  EXPECT_NE(file.value().description().find("direct I/O"), std::string::npos);
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
