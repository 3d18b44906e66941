// Processes: forbidden io_uring, forks, kills, neighbours.
#include "spill_fixture.h"

#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <sys/resource.h>

#include <csignal>

#include "child.h"
#include "tests/support/eventually.h"

#ifdef __SANITIZE_THREAD__
// These tests start threads in forked children, which the sanitizer can follow but refuses unless told.
extern "C" __attribute__((visibility("default"))) const char* __tsan_default_options() {
  return "die_after_fork=0";
}
#endif

namespace ebbtide::nvme {
namespace {

/// From now on this system call fails with `error`, in this process.
bool forbid(long call, int error) {
  sock_filter program[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, static_cast<uint32_t>(call), 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | static_cast<uint32_t>(error)),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog filter{4, program};
  return ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) == 0;
}

SpillOptions options_for(const Folder& folder) {
  SpillOptions options;
  options.folders = {folder.path()};
  options.budget = MiB(64);
  return options;
}

/// 0: the tier opened with the thread queue, said why, and works.
int works_without_io_uring(const Folder& folder, long call, int error) {
  if (!forbid(call, error)) return 77;
  auto tier = SpillTier::open(options_for(folder));
  if (!tier) return 1;
  const SpillStats stats = tier.value()->stats();
  if (stats.io_uring) return 2;
  if (stats.description.find("not io_uring: io_uring_") == std::string::npos ||
      stats.description.find("(" + std::to_string(error) + ")") == std::string::npos) {
    std::fprintf(stderr, "%s\n", stats.description.c_str());
    return 3;
  }
  Memory out(3 << 20, 1), in(3 << 20);
  const SpilledItem item = write_now(*tier.value(), 1, out.piece());
  if (!read_now(*tier.value(), item, in.piece())) return 4;
  return in == out ? 0 : 5;
}

class Forbidden : public ::testing::TestWithParam<std::pair<long, int>> {};
INSTANTIATE_TEST_SUITE_P(IoUring, Forbidden,
                         ::testing::Values(std::pair{long{SYS_io_uring_setup}, EPERM},
                                           std::pair{long{SYS_io_uring_setup}, ENOSYS},
                                           std::pair{long{SYS_io_uring_setup}, ENOMEM},
                                           std::pair{long{SYS_io_uring_enter}, EPERM}));

TEST_P(Forbidden, FallsBackToThreadsAndSaysWhy) {
  const Folder folder;
  const int status = in_child([&] { return works_without_io_uring(folder, GetParam().first, GetParam().second); });
  if (status == 77) GTEST_SKIP() << "this sandbox allows no seccomp filter";
  EXPECT_EQ(status, 0);
}

TEST(SpillTierProcess, AForkedChildIsRefusedAndHarmsNothing) {
  const Folder folder;
  auto tier = SpillTier::open(options_for(folder));
  ASSERT_TRUE(tier);
  Memory out(8 << 20, 1), in(8 << 20);
  SpilledItem item = write_now(*tier.value(), 1, out.piece());
  Written busy;
  ASSERT_TRUE(tier.value()->write(2, out.piece(), busy.done()));
  const int status = in_child([&] {
    if (tier.value()->write(3, out.piece(), [](auto) {}).failure().code != FailureCode::kUnsupported) return 1;
    bool told = false;
    tier.value()->read(item, in.piece(), SpillTier::Priority::kDemand,
                       [&](Status read) { told = !read && read.failure().code == FailureCode::kUnsupported; });
    if (!told) return 2;
    tier.value()->cancel(2);
    tier.value()->raise_priority(2);
    tier.value()->stats();
    tier.value()->close();
    item = {};  // must not free the parent's extent
    tier.value().reset();
    return 0;
  });
  EXPECT_EQ(status, 0);
  EXPECT_TRUE(busy.get());
  Memory other(8 << 20, 9);
  const SpilledItem next = write_now(*tier.value(), 4, other.piece());
  EXPECT_TRUE(read_now(*tier.value(), item, in.piece()));
  EXPECT_TRUE(in == out);
}

uint64_t free_blocks(const Folder& folder) {
  struct statvfs status {};
  EXPECT_EQ(::statvfs(folder.path().c_str(), &status), 0);
  return status.f_bfree;
}

TEST(SpillTierProcess, AChildThatOutlivesTheTierKeepsNoRoom) {
  Folder folder;
  if (!folder.mount_tmpfs("64m")) GTEST_SKIP() << "cannot mount: " << std::strerror(errno);
  const uint64_t before = free_blocks(folder);
  for (const bool allow_io_uring : {true, false}) {
    SpillOptions options = options_for(folder);
    options.allow_io_uring = allow_io_uring;
    auto tier = SpillTier::open(options);
    ASSERT_TRUE(tier) << tier.failure().message;
    SpilledItem item = write_now(*tier.value(), 1, Memory(8 << 20, 1).piece());
    EXPECT_LT(free_blocks(folder), before);
    const IdleChild child;
    item = {};
    tier.value()->close();
    tier.value().reset();
    EXPECT_TRUE(test::eventually([&] { return free_blocks(folder) == before; })) << "io_uring: " << allow_io_uring;
    EXPECT_TRUE(child.lives());
  }
}

/// A child that writes, reads and drops items until it is killed, and says at `ready` when the first one rests.
[[noreturn]] void spill_for_ever(const Folder& folder, int ready) {
  auto tier = SpillTier::open(options_for(folder));
  if (!tier) ::_exit(1);
  std::vector<SpilledItem> items;
  for (uint64_t i = 0;; ++i) {
    Memory memory((1 + i % 7) << 19, i), in(memory.bytes());
    items.push_back(write_now(*tier.value(), i, memory.piece()));
    if (i == 0 && ::write(ready, "y", 1) != 1) ::_exit(1);
    if (!read_now(*tier.value(), items.back(), in.piece()) || !(in == memory)) ::_exit(2);
    if (items.size() > 8) items.erase(items.begin() + static_cast<long>(i % items.size()));
  }
}

TEST(SpillTierProcess, KilledAtAnyMomentItLeavesNothing) {
  Folder folder;
  if (!folder.mount_tmpfs("64m")) GTEST_SKIP() << "cannot mount: " << std::strerror(errno);
  const uint64_t before = free_blocks(folder);
  std::mt19937_64 random(1);
  const int kills = std::getenv("EBBTIDE_LONG") != nullptr ? 100 : 20;
  for (int kill = 0; kill < kills; ++kill) {
    int ready[2];
    ASSERT_EQ(::pipe2(ready, O_CLOEXEC), 0);
    const pid_t child = ::fork();
    if (child == 0) spill_for_ever(folder, ready[1]);
    ::close(ready[1]);  // a child that dies early is an end of file here, and not a wait for ever
    char ok = 0;
    EXPECT_EQ(::read(ready[0], &ok, 1), 1);
    ::close(ready[0]);
    EXPECT_LT(free_blocks(folder), before);
    EXPECT_TRUE(folder.empty());
    ::usleep(static_cast<useconds_t>(random() % 50'000));  // not waiting for anything: any moment is the right one
    ASSERT_EQ(::kill(child, SIGKILL), 0);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFSIGNALED(status)) << "it ended by itself, with " << WEXITSTATUS(status);
    EXPECT_TRUE(folder.empty());
    // The kernel takes a dead process's ring apart, and with it the file, a moment after the process is reaped.
    EXPECT_TRUE(test::eventually([&] { return free_blocks(folder) == before; })) << "kill " << kill;
  }
}

TEST(SpillTierProcess, ANeighboursDeathGivesItsRoomBack) {
  Folder folder;
  if (!folder.mount_tmpfs("24m")) GTEST_SKIP() << "cannot mount: " << std::strerror(errno);
  int ready[2];
  ASSERT_EQ(::pipe2(ready, O_CLOEXEC), 0);
  const pid_t neighbour = ::fork();
  if (neighbour == 0) {
    auto tier = SpillTier::open(options_for(folder));
    Memory memory(4 << 20, 1);
    std::vector<SpilledItem> items;
    while (tier) {
      Written written;
      if (!tier.value()->write(items.size(), memory.piece(), written.done())) break;
      items.push_back(std::move(written.get()).value());
    }
    if (::write(ready[1], "y", 1) != 1) ::_exit(1);
    for (;;) ::pause();
  }
  ::close(ready[1]);
  char ok = 0;
  ASSERT_EQ(::read(ready[0], &ok, 1), 1);
  ::close(ready[0]);
  auto tier = SpillTier::open(options_for(folder));
  ASSERT_TRUE(tier) << tier.failure().message;
  Memory memory(4 << 20, 2), in(4 << 20);
  const auto refused = tier.value()->write(1, memory.piece(), [](auto) { FAIL() << "refused, so never called"; });
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.failure().code, FailureCode::kNoSpace);
  ASSERT_EQ(::kill(neighbour, SIGKILL), 0);
  ASSERT_EQ(::waitpid(neighbour, nullptr, 0), neighbour);
  SpilledItem item;
  EXPECT_TRUE(test::eventually([&] {
    Written written;
    const auto id = tier.value()->write(2, memory.piece(), written.done());
    if (id) item = std::move(written.get()).value();
    return id.ok();
  }));
  EXPECT_TRUE(read_now(*tier.value(), item, in.piece()));
  EXPECT_TRUE(in == memory);
}

TEST(SpillTierProcess, TwoProcessesShareAFolder) {
  const Folder folder;
  const auto fill_and_check = [&](uint64_t seed) {
    auto tier = SpillTier::open(options_for(folder));
    if (!tier) return 1;
    std::vector<SpilledItem> items;
    for (uint64_t i = 0; i < 8; ++i) {
      items.push_back(write_now(*tier.value(), i, Memory(1 << 20, seed + i).piece()));
    }
    for (uint64_t i = 0; i < 8; ++i) {
      Memory in(1 << 20);
      if (!read_now(*tier.value(), items[i], in.piece()) || !(in == Memory(1 << 20, seed + i))) return 2;
    }
    return 0;
  };
  const pid_t child = ::fork();
  if (child == 0) ::_exit(fill_and_check(1000));
  EXPECT_EQ(fill_and_check(2000), 0);
  int status = -1;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_TRUE(folder.empty());
}

TEST(SpillTierProcess, AFileSizeLimitIsAFullDiskAndNoSignal) {
  const Folder folder;
  const int status = in_child([&] {
    const rlimit limit{4 << 20, 4 << 20};
    if (::setrlimit(RLIMIT_FSIZE, &limit) != 0) return 1;
    auto tier = SpillTier::open(options_for(folder));
    if (!tier) return 2;
    Memory memory(3 << 20, 1);
    const SpilledItem item = write_now(*tier.value(), 1, memory.piece());
    auto refused = tier.value()->write(2, memory.piece(), [](auto) {});
    return !refused && refused.failure().code == FailureCode::kNoSpace ? 0 : 3;
  });
  EXPECT_EQ(status, 0);
}

}  // namespace
}  // namespace ebbtide::nvme
