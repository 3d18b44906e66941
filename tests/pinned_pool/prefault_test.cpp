#include <ebbtide/pinned_pool/page.h>
#include <ebbtide/pinned_pool/prefault.h>
#include <ebbtide/pinned_pool/slab.h>

#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

namespace ebbtide::pinned_pool {
namespace {

/// Memory of three pieces and a bit, that nothing has touched.
class PrefaultTest : public testing::Test {
 protected:
  static constexpr size_t kBytes = 3 * kPrefaultPiece + kHugePage;

  void SetUp() override { ASSERT_NE(data_, nullptr); }
  ~PrefaultTest() override { ::munmap(data_, kBytes); }

  double present() const {
    std::vector<unsigned char> pages(kBytes / page_bytes());
    if (::mincore(data_, kBytes, pages.data()) != 0) return -1;
    const auto there = std::count_if(pages.begin(), pages.end(), [](unsigned char page) { return (page & 1) != 0; });
    return static_cast<double>(there) / static_cast<double>(pages.size());
  }
  /// In the mappings that share a byte with this memory.
  size_t huge() const {
    std::ifstream maps("/proc/self/smaps");
    bool inside = false;
    size_t total = 0;
    for (std::string line; std::getline(maps, line);) {
      uint64_t begin = 0, end = 0, kib = 0;
      if (std::sscanf(line.c_str(), "%" SCNx64 "-%" SCNx64 " ", &begin, &end) == 2) {
        const auto start = reinterpret_cast<uint64_t>(data_);
        inside = end > start && begin < start + kBytes;
      } else if (inside && std::sscanf(line.c_str(), "AnonHugePages: %" SCNu64 " kB", &kib) == 1) {
        total += kib << 10;
      }
    }
    return total;
  }

  std::byte* const data_ = map_aligned(kBytes);
};

TEST_F(PrefaultTest, EveryPageIsThereWhoeverMakesIt) {
  for (const unsigned threads : {1u, 2u, 4u, 0u}) {
    ASSERT_EQ(::madvise(data_, kBytes, MADV_DONTNEED), 0);
    ASSERT_EQ(present(), 0);
    auto done = prefault({.data = data_, .bytes = kBytes, .threads = threads});
    ASSERT_TRUE(done) << done.failure().message;
    EXPECT_EQ(present(), 1) << threads << " threads";
  }
}

TEST_F(PrefaultTest, WhatIsThereKeepsWhatItHolds) {
  data_[0] = data_[kBytes - 1] = std::byte{7};
  ASSERT_TRUE(prefault({.data = data_, .bytes = kBytes}));
  EXPECT_EQ(data_[0], std::byte{7});
  EXPECT_EQ(data_[kBytes - 1], std::byte{7});
}

TEST_F(PrefaultTest, FallsBackToSmallPagesWhereHugeOnesCrawl) {
  auto quick = prefault({.data = data_, .bytes = kBytes, .crawling = std::chrono::hours(1)});
  ASSERT_TRUE(quick);
  if (!quick.value() || huge() < kBytes / 2) GTEST_SKIP() << "this kernel gives no huge pages";
  ASSERT_EQ(::madvise(data_, kBytes, MADV_DONTNEED), 0);
  auto crawled = prefault({.data = data_, .bytes = kBytes, .threads = 1, .crawling = std::chrono::nanoseconds(0)});
  ASSERT_TRUE(crawled);
  EXPECT_FALSE(crawled.value());
  EXPECT_LE(huge(), kPrefaultPiece);
  EXPECT_EQ(present(), 1);
}

TEST_F(PrefaultTest, CancelledBetweenPieces) {
  const std::atomic<bool> cancelled = true;
  auto refused = prefault({.data = data_, .bytes = kBytes, .cancelled = &cancelled});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.failure().code, FailureCode::kCancelled);
  EXPECT_EQ(present(), 0);
}

// As sandboxes do: the system call is refused, whatever it asks.
bool refuse_madvise(uint32_t error) {
  std::array<sock_filter, 4> program = {
      sock_filter BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      sock_filter BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_madvise, 0, 1),
      sock_filter BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | error),
      sock_filter BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog filter{static_cast<unsigned short>(program.size()), program.data()};
  return ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) == 0;
}

TEST_F(PrefaultTest, SlabIsMadeThoughMadviseIsRefused) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "the sanitizers' runtimes need madvise themselves";
#endif
  constexpr int kNoFilter = 77;
  for (const int error : {EPERM, EINVAL, ENOSYS}) {
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      ::alarm(60);
      if (!refuse_madvise(static_cast<uint32_t>(error))) ::_exit(kNoFilter);
      auto slab = Slab::make({.bytes = 4 * kHugePage, .survives_fork = false});
      if (!slab) ::_exit(1);
      if (slab.value().huge_pages()) ::_exit(2);
      if (slab.value().inherited_because().find("MADV_DONTFORK") == std::string::npos) ::_exit(3);
      std::vector<unsigned char> pages(4 * kHugePage / page_bytes());
      if (::mincore(slab.value().data(), 4 * kHugePage, pages.data()) != 0) ::_exit(4);
      for (const unsigned char page : pages)
        if ((page & 1) == 0) ::_exit(5);
      ::_exit(0);
    }
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFEXITED(status));
    if (WEXITSTATUS(status) == kNoFilter) GTEST_SKIP() << "this machine lets no process refuse itself system calls";
    EXPECT_EQ(WEXITSTATUS(status), 0) << "madvise refused with errno " << error;
  }
}

// Without memory it must not touch the pages instead: that would be the end of the process.
TEST_F(PrefaultTest, NoPagesIsAFailure) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "the sanitizers' runtimes need madvise themselves";
#endif
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    ::alarm(60);
    if (!refuse_madvise(ENOMEM)) ::_exit(77);
    auto slab = Slab::make({.bytes = 4 * kHugePage});
    ::_exit(!slab && slab.failure().code == FailureCode::kOverCapacity ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status));
  if (WEXITSTATUS(status) == 77) GTEST_SKIP() << "this machine lets no process refuse itself system calls";
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

}  // namespace
}  // namespace ebbtide::pinned_pool
