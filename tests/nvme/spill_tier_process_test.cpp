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

#ifdef __SANITIZE_THREAD__
// These tests start threads in forked children, which the sanitizer can follow but refuses unless told.
extern "C" __attribute__((visibility("default"))) const char* __tsan_default_options() {
  return "die_after_fork=0";
}
#endif

namespace ebbtide::nvme {
namespace {

/// Runs `body` in a child of its own; its result is the child's exit status. The child never returns into the test
/// runner.
template <class Body>
int in_child(Body body) {
  const pid_t child = ::fork();
  if (child == 0) {
    int status = 99;
    try {
      status = body();
    } catch (const std::exception& error) {
      std::fprintf(stderr, "child: %s\n", error.what());
    }
    ::_exit(status);
  }
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status)) << "signal " << WTERMSIG(status);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

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

TEST(SpillTierProcess, AKilledProcessLeavesNoFileAndNoBytes) {
  Folder folder;
  if (!folder.mount_tmpfs("64m")) GTEST_SKIP() << "cannot mount: " << std::strerror(errno);
  const auto free_blocks = [&] {
    struct statvfs status {};
    EXPECT_EQ(::statvfs(folder.path().c_str(), &status), 0);
    return status.f_bfree;
  };
  const auto before = free_blocks();
  int ready[2];
  ASSERT_EQ(::pipe2(ready, O_CLOEXEC), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    auto tier = SpillTier::open(options_for(folder));
    Memory memory(16 << 20, 1);
    const SpilledItem item = tier ? write_now(*tier.value(), 1, memory.piece()) : SpilledItem();
    const char ok = item ? 'y' : 'n';
    if (::write(ready[1], &ok, 1) != 1) ::_exit(1);
    for (;;) ::pause();
  }
  ::close(ready[1]);  // a child that dies early is an end of file here, and not a wait for ever
  char ok = 0;
  EXPECT_EQ(::read(ready[0], &ok, 1), 1);
  EXPECT_EQ(ok, 'y');
  EXPECT_TRUE(folder.empty());
  EXPECT_LT(free_blocks(), before);
  ASSERT_EQ(::kill(child, SIGKILL), 0);
  ASSERT_EQ(::waitpid(child, nullptr, 0), child);
  EXPECT_TRUE(folder.empty());
  // The kernel takes a dead process's ring apart, and with it the file, a moment after the process is reaped.
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  while (free_blocks() != before && std::chrono::steady_clock::now() < until) ::sched_yield();
  EXPECT_EQ(free_blocks(), before);
  ::close(ready[0]);
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
