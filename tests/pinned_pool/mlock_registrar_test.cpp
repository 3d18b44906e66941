#include <ebbtide/pinned_pool/mlock_registrar.h>
#include <ebbtide/pinned_pool/pool.h>

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <string>
#include <utility>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SKIP_WHERE_MLOCK_IS_FAKED() GTEST_SKIP() << "the sanitizers' runtimes make mlock a call that does nothing"
#else
#define SKIP_WHERE_MLOCK_IS_FAKED() (void)0
#endif

namespace ebbtide {
namespace {

int64_t locked_kib() {
  std::ifstream file("/proc/self/status");
  std::string line;
  while (std::getline(file, line)) {
    if (line.rfind("VmLck:", 0) == 0) return std::stoll(line.substr(6));
  }
  return -1;
}

PoolOptions options() {
  return {
      .capacity = MiB(16), .slab_bytes = MiB(4), .registrar = std::make_shared<MlockRegistrar>(), .keep_spare = false};
}

TEST(MlockRegistrar, LocksSlabsAndUnlocksThem) {
  SKIP_WHERE_MLOCK_IS_FAKED();
  rlimit limit{};
  ASSERT_EQ(::getrlimit(RLIMIT_MEMLOCK, &limit), 0);
  if (::geteuid() != 0 && limit.rlim_cur < (4u << 20))
    GTEST_SKIP() << "RLIMIT_MEMLOCK is under 4 MiB, and this is not root";
  const int64_t before = locked_kib();
  {
    auto pool = std::move(PinnedPool::create(options())).value();
    auto block = pool->acquire({.bytes = MiB(1)});
    ASSERT_TRUE(block);
    EXPECT_TRUE(pool->stats().pinned) << pool->stats().pageable_because;
    EXPECT_EQ(locked_kib() - before, 4096);
  }
  EXPECT_EQ(locked_kib(), before);
}

// In a child: limits and rights do not come back.
TEST(MlockRegistrar, OverTheLimitThePoolGoesOnPageableAndSaysSo) {
  SKIP_WHERE_MLOCK_IS_FAKED();
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    ::alarm(60);
    const rlimit limit{64 << 10, 64 << 10};
    if (::setrlimit(RLIMIT_MEMLOCK, &limit) != 0) ::_exit(10);
    if (::geteuid() == 0 && ::setuid(65534) != 0) ::_exit(11);  // root's rights go beyond the limit
    auto pool = PinnedPool::create(options());
    if (!pool) ::_exit(12);
    auto block = pool.value()->acquire({.bytes = MiB(1)});
    if (!block) ::_exit(13);
    block.value().chunks()[0].data[0] = std::byte{1};
    const PoolStats stats = pool.value()->stats();
    std::fprintf(stderr, "%s\n", stats.pageable_because.c_str());
    if (stats.pinned) ::_exit(14);
    ::_exit(stats.pageable_because.find("RLIMIT_MEMLOCK is 64 KiB") == std::string::npos ? 15 : 0);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

}  // namespace
}  // namespace ebbtide
