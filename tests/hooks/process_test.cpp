// Forks and the end of the process.
#include <ebbtide/hooks/offload_scope.h>
#include <ebbtide/store/store.h>

#include <tests/hooks/support.h>

#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <exception>

namespace ebbtide::test {
namespace {

enum Exit { kFine = 0, kNotServed = 77, kPacked, kWrongGradient, kNoSpillError, kThrew };

/// What a forked child may do with a store and a graph of its parent's.
Exit child(Store& store, at::Tensor graph, const at::Tensor& x, const at::Tensor& reference) {
  try {
    gradient_of(chain(x), x);
  } catch (const std::exception&) {
    return kNotServed;
  }
  try {
    const int64_t packed = store.stats().packed.tensors;
    at::Tensor y;
    {
      OffloadScope scope(store);
      y = chain(x);
    }
    if (store.stats().packed.tensors != packed) return kPacked;
    if (!same_bits(gradient_of(y, x), reference)) return kWrongGradient;
    try {
      gradient_of(graph, x);
      return kNoSpillError;
    } catch (const SpillError&) {
    }
    graph.reset();
    return kFine;
  } catch (const std::exception&) {
    return kThrew;
  }
}

TEST(ProcessTest, InAForkedChildAllPassesThroughAndTheParentGoesOn) {
  const Folder folder;
  Store store(spilling(folder));
  const at::Tensor x = leaf();
  const at::Tensor reference = gradient_of(chain(x), x);
  at::Tensor y;
  {
    OffloadScope scope(store);
    y = chain(x);
  }
  ASSERT_GT(store.stats().spill.bytes, Bytes(0));
  const pid_t pid = ::fork();
  ASSERT_NE(pid, -1) << std::strerror(errno);
  if (pid == 0) {
    ::alarm(60);
    ::_exit(child(store, std::move(y), x, reference));
  }
  int status = 0;
  ASSERT_EQ(::waitpid(pid, &status, 0), pid);
  EXPECT_TRUE(same_bits(gradient_of(y, x), reference)) << "the child took something from the parent";
  {
    OffloadScope scope(store);
    y = chain(x);
  }
  EXPECT_TRUE(same_bits(gradient_of(y, x), reference));
  expect_all_is_over(store);
  ASSERT_TRUE(WIFEXITED(status)) << "signal " << WTERMSIG(status);
  if (WEXITSTATUS(status) == kNotServed) GTEST_SKIP() << "this torch runs no backward in a forked child";
  EXPECT_EQ(WEXITSTATUS(status), kFine);
}

class ExitDeathTest : public testing::Test {
 protected:
  // In a process of its own from the start, and not a fork of this one.
  void SetUp() override { GTEST_FLAG_SET(death_test_style, "threadsafe"); }

  [[noreturn]] static void exit_at_once(const Folder& folder) {
    ::rmdir(folder.path().c_str());  // std::exit runs no destructor of a local; spill files have no name
    ::alarm(30);                     // a hang, on a loaded machine too: kills, which is not the exit that is expected
    std::exit(0);
  }
};

TEST_F(ExitDeathTest, WithLiveRecordsAndAnOpenScope) {
  const auto body = [] {
    const Folder folder;
    static Store store(spilling(folder));
    static const at::Tensor x = leaf();
    static OffloadScope scope(store);
    static const at::Tensor y = chain(x);
    if (store.stats().saved.tensors == 0) std::_Exit(2);
    exit_at_once(folder);
  };
  EXPECT_EXIT(body(), testing::ExitedWithCode(0), "");
}

TEST_F(ExitDeathTest, WithAStoreAScopeAndAGraphThatNobodyDestroys) {
  const auto body = [] {
    const Folder folder;
    auto* store = new Store(spilling(folder));
    [[maybe_unused]] auto* scope = new OffloadScope(*store);
    [[maybe_unused]] auto* y = new at::Tensor(chain(leaf()));
    if (store->stats().saved.tensors == 0) std::_Exit(2);
    exit_at_once(folder);
  };
  EXPECT_EXIT(body(), testing::ExitedWithCode(0), "");
}

}  // namespace
}  // namespace ebbtide::test
