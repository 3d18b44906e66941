// Files in several runs on their disk, and writes that io_uring need not hand to its workers.
#include <ebbtide/nvme/disk_runs.h>
#include <fcntl.h>
#include <liburing.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include <set>

#include "loop_disk.h"
#include "punted_requests.h"
#include "spill_fixture.h"

namespace ebbtide::nvme {
namespace {

constexpr size_t kRun = (size_t{2} << 20) + 4096;

/// A disk whose room is in runs of kRun bytes. Null: the test is skipped.
std::unique_ptr<LoopDisk> broken_up_disk(std::string& why_not) {
  auto made = LoopDisk::make(size_t{96} << 20, ::testing::TempDir());
  if (!made) {
    why_not = made.failure().message;
    return nullptr;
  }
  const std::string kept = made.value()->path() + "/kept", gone = made.value()->path() + "/gone";
  const int keep = ::open(kept.c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0600);
  const int go = ::open(gone.c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0600);
  int error = keep < 0 || go < 0 ? EIO : 0;
  for (off_t at = 0; error == 0; at += kRun) {
    error = ::posix_fallocate(go, at, kRun);
    if (error == 0) error = ::posix_fallocate(keep, at, kRun);
  }
  ::close(keep);
  ::close(go);
  if (error != ENOSPC) throw std::runtime_error("cannot break up a disk: " + std::string(std::strerror(error)));
  ::unlink(gone.c_str());
  return std::move(made).value();
}

/// The places where the next block of a file is not the next one on the disk, block by block. REQUIRES: all is written.
std::set<uint64_t> seams_of(int fd) {
  int block_bytes = 0;
  struct stat status {};
  if (::ioctl(fd, FIGETBSZ, &block_bytes) != 0 || ::fstat(fd, &status) != 0) throw std::runtime_error("FIGETBSZ");
  std::set<uint64_t> seams;
  for (int block = 0, last = 0; block < status.st_size / block_bytes; ++block) {
    int on_disk = block;
    if (::ioctl(fd, FIBMAP, &on_disk) != 0) throw std::runtime_error("FIBMAP: " + std::string(std::strerror(errno)));
    if (block > 0 && on_disk != last + 1)
      seams.insert(static_cast<uint64_t>(block) * static_cast<uint64_t>(block_bytes));
    last = on_disk;
  }
  return seams;
}

void write_all(SpillFile& file) {
  Memory memory(1 << 20);
  for (uint64_t at = 0; at < file.size(); at += memory.bytes()) {
    ASSERT_EQ(::pwrite(file.fd(), memory.data(), memory.bytes(), static_cast<off_t>(at)), ssize_t{1} << 20);
  }
}

TEST(DiskRuns, AWriteEndsAtASeam) {
  std::string why_not;
  const auto disk = broken_up_disk(why_not);
  if (!disk) GTEST_SKIP() << why_not;
  auto opened = SpillFile::open(disk->path());
  ASSERT_TRUE(opened) << opened.failure().message;
  SpillFile& file = opened.value();
  DiskRuns runs(file.fd(), file.alignment().length), coarse(file.fd(), 64 << 10);
  std::mt19937_64 random(1);
  for (const uint64_t size : {8 << 20, 24 << 20}) {
    ASSERT_TRUE(file.grow(size));
    ASSERT_NO_FATAL_FAILURE(write_all(file));
    const std::set<uint64_t> seams = seams_of(file.fd());
    ASSERT_GE(seams.size(), 2u);
    for (int i = 0; i < 10'000; ++i) {
      const uint64_t offset = random() % (size / 4096) * 4096;
      const auto bytes = static_cast<uint32_t>(std::min<uint64_t>(size - offset, (1 + random() % 800) * 4096));
      const auto first = seams.upper_bound(offset);
      const bool crosses = first != seams.end() && *first < offset + bytes;
      const bool several = crosses && std::next(first) != seams.end() && *std::next(first) < offset + bytes;
      ASSERT_EQ(runs.write_at_once(offset, bytes), crosses && !several ? *first - offset : bytes)
          << bytes << " bytes at " << offset;
      const uint32_t aligned = coarse.write_at_once(offset, bytes);
      ASSERT_TRUE(aligned == bytes || aligned % (64 << 10) == 0) << aligned << " of " << bytes;
    }
  }
}

/// tmpfs does not say.
TEST(DiskRuns, WhereNothingIsKnownOfThemAWriteIsWhole) {
  Folder folder;
  if (!folder.mount_tmpfs("4m")) GTEST_SKIP() << "cannot mount: " << std::strerror(errno);
  auto file = SpillFile::open(folder.path());
  ASSERT_TRUE(file);
  ASSERT_TRUE(file.value().grow(2 << 20));
  DiskRuns runs(file.value().fd(), 4096);
  EXPECT_EQ(runs.write_at_once(0, 1 << 20), uint32_t{1} << 20);
  EXPECT_EQ(runs.write_at_once(1 << 20, 1 << 20), uint32_t{1} << 20);
}

/// That the counter counts.
bool counts(const PuntedRequests& punted) {
  io_uring ring;
  if (::io_uring_queue_init(2, &ring, 0) != 0) return false;
  const uint64_t before = punted.count();
  io_uring_sqe* sqe = ::io_uring_get_sqe(&ring);
  ::io_uring_prep_nop(sqe);
  ::io_uring_sqe_set_flags(sqe, IOSQE_ASYNC);
  const bool done = ::io_uring_submit_and_wait(&ring, 1) == 1;
  ::io_uring_queue_exit(&ring);
  return done && punted.count() == before + 1;
}

/// Once all of the file has been written: writes to blocks that only were reserved may wait.
TEST(DiskRuns, InTheSteadyStateNoWriteIsPunted) {
  const PuntedRequests punted;
  if (!punted.why_not().empty()) GTEST_SKIP() << punted.why_not();
  std::string why_not;
  const auto disk = broken_up_disk(why_not);
  if (!disk) GTEST_SKIP() << why_not;
  SpillOptions options;
  options.folders = {disk->path()};
  options.budget = MiB(24);
  options.reserve = Bytes(0);
  int fd = -1;
  auto tier =
      TierState::open(options, [&](const QueueOptions& queue, std::shared_ptr<IoSource> source, std::string& why) {
        fd = queue.fd;
        return start_queue(queue, std::move(source), true, why);
      });
  ASSERT_TRUE(tier) << tier.failure().message;
  if (!tier.value()->stats().io_uring) GTEST_SKIP() << tier.value()->stats().description;
  ASSERT_TRUE(counts(punted));

  Memory memory(16 << 20, 1);
  const auto write_all = [&] {
    const uint64_t before = punted.count();
    write_now(*tier.value(), 1, memory.piece());  // the item dies, so that the next one has its place
    return punted.count() - before;
  };
  write_all();
  ASSERT_FALSE(seams_of(fd).empty());
  // Elsewhere in the kernel a write may find itself too early (no memory at once, a busy disk), but not always.
  uint64_t fewest = write_all();
  for (int again = 0; fewest > 0 && again < 20; ++again) fewest = std::min(fewest, write_all());
  EXPECT_EQ(fewest, 0u);
  tier.value()->close();
}

}  // namespace
}  // namespace ebbtide::nvme
