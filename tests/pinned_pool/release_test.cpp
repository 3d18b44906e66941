// Blocks go back whatever other threads do, or fail to do.
#include <ebbtide/pinned_pool/pool.h>
#include <ebbtide/pinned_pool/returned_blocks.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <pthread.h>
#include <signal.h>

#include <atomic>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "tests/support/eventually.h"

namespace ebbtide::pinned_pool {
namespace {

class ReturnedBlocksTest : public testing::Test {
 protected:
  ReturnedBlocksTest() {
    for (size_t i = 0; i < std::size(blocks_); ++i) blocks_[i].home = i;
  }
  void push(size_t number) { list_.push(&blocks_[number]); }
  std::vector<size_t> take() {
    std::vector<size_t> taken;
    const bool any = list_.take_all([&](const ReturnedBlock* block) { taken.push_back(block->home); });
    EXPECT_EQ(any, !taken.empty());
    return taken;
  }

  ReturnedBlock blocks_[8];
  ReturnedBlocks list_;
};

TEST_F(ReturnedBlocksTest, AllThatWasPushedIsTakenOnce) {
  for (size_t i = 0; i < 3; ++i) push(i);
  EXPECT_THAT(take(), testing::UnorderedElementsAre(0, 1, 2));
  EXPECT_THAT(take(), testing::IsEmpty());
  push(1);
  EXPECT_THAT(take(), testing::ElementsAre(1));
}

TEST_F(ReturnedBlocksTest, APushThatStoppedHalfwayKeepsBackOnlyWhatCameBeforeIt) {
  push(0);
  const auto stopped = list_.begin(&blocks_[1]);
  push(2);
  EXPECT_THAT(take(), testing::ElementsAre(2));
  const auto another = list_.begin(&blocks_[3]);
  push(4);
  EXPECT_THAT(take(), testing::ElementsAre(4));
  push(5);
  EXPECT_THAT(take(), testing::ElementsAre(5));
  ReturnedBlocks::finish(stopped);
  EXPECT_THAT(take(), testing::ElementsAre(1, 0));
  ReturnedBlocks::finish(another);
  EXPECT_THAT(take(), testing::ElementsAre(3));
  EXPECT_THAT(take(), testing::IsEmpty());
}

/// Another thread at the mercy of this one: stops wherever a signal finds it, with whatever locks it has then.
class StoppedThread {
 public:
  explicit StoppedThread(std::function<void()> work)
      : thread_([this, work = std::move(work)] {
          while (!end_.load()) work();
        }) {
    struct sigaction action {};
    action.sa_handler = [](int) {
      is_stopped.store(true);
      while (must_stop.load()) {
      }
      is_stopped.store(false);
    };
    EXPECT_EQ(::sigaction(SIGUSR1, &action, &before_), 0);
  }
  ~StoppedThread() {
    go_on();
    end_.store(true);
    thread_.join();
    ::sigaction(SIGUSR1, &before_, nullptr);
  }
  bool stop() {
    must_stop.store(true);
    EXPECT_EQ(::pthread_kill(thread_.native_handle(), SIGUSR1), 0);
    return test::eventually([] { return is_stopped.load(); });
  }
  bool go_on() {
    must_stop.store(false);
    return test::eventually([] { return !is_stopped.load(); });
  }

 private:
  static inline std::atomic<bool> must_stop = false, is_stopped = false;
  struct sigaction before_ {};
  std::atomic<bool> end_ = false;
  std::thread thread_;
};

TEST(Release, AThreadStoppedInsideAcquireStopsNoRelease) {
  auto pool = PinnedPool::create({.capacity = MiB(64), .slab_bytes = MiB(8), .keep_spare = false}).value();
  const auto acquire = [&](Bytes bytes, bool contiguous = false) {
    return pool->acquire({.bytes = bytes, .contiguous = contiguous}).value();
  };
  // Small ones, large ones and those with a slab of their own.
  StoppedThread other(
      [&] { const Block small = acquire(KiB(64)), large = acquire(MiB(6)), own = acquire(MiB(9), true); });
  for (int round = 0; round < 200; ++round) {
    std::vector<Block> blocks;
    blocks.push_back(acquire(KiB(256)));
    blocks.push_back(acquire(MiB(3)));
    blocks.push_back(acquire(MiB(10), true));
    ASSERT_TRUE(other.stop());
    std::atomic<bool> released = false;
    std::thread releases([&] {
      blocks.clear();
      released = true;
    });
    EXPECT_TRUE(test::eventually([&] { return released.load(); })) << "in round " << round;
    const bool waited = !released;
    ASSERT_TRUE(other.go_on());
    releases.join();
    if (waited) break;
  }
}

}  // namespace
}  // namespace ebbtide::pinned_pool
