// What a pool does when the machine refuses, shrinks, hangs or ends.
#include <ebbtide/pinned_pool/pool.h>

#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "tests/pinned_pool/fake_registrar.h"
#include "tests/pinned_pool/pool_support.h"
#include "tests/pinned_pool/system_tree.h"

namespace ebbtide {
namespace {

using test::get;
using test::make;
using test::small;
using test::sum;

// A device's copy may touch one registration only: where a slab needs several, chunks end at their seams.
TEST(PoolBadDays, SlabsPinnedInPiecesLendChunksThatNoSeamCrosses) {
  auto registrar = std::make_shared<test::FakeRegistrar>();
  registrar->limit(size_t{4} << 20);
  PoolOptions options = small(MiB(64), MiB(16));
  options.registrar = registrar;
  auto pool = make(options);
  for (int round = 0; round < 3; ++round) {
    std::vector<Block> blocks;
    for (const Bytes bytes : {MiB(14), MiB(1), MiB(7), MiB(16), MiB(3) + Bytes(5)}) {
      blocks.push_back(get(*pool, bytes));
      EXPECT_EQ(sum(blocks.back()), static_cast<size_t>(bytes.count()));
      for (const Chunk& chunk : blocks.back().chunks()) EXPECT_TRUE(registrar->covers(chunk.data, chunk.bytes));
    }
    EXPECT_GE(blocks.front().chunks().size(), 4u);
    EXPECT_EQ(get(*pool, MiB(14), true).chunks().size(), 1u) << "contiguous stays one chunk";
  }
  const PoolStats stats = pool->stats();
  EXPECT_EQ(stats.live_bytes, Bytes(0));
  EXPECT_TRUE(stats.pinned);
  EXPECT_EQ(stats.pinned_bytes, stats.slab_bytes);
  EXPECT_EQ(pool->trim(), stats.slab_bytes) << "every piece came back, and once";
  EXPECT_EQ(registrar->pinned(), 0u);
}

TEST(PoolBadDays, OverATotalOfRegistrationsThePoolKeepsWhatPinnedAndGoesOnPageable) {
  auto registrar = std::make_shared<test::FakeRegistrar>();
  registrar->limit(size_t{16} << 20, size_t{24} << 20);
  PoolOptions options = small(MiB(64), MiB(16));
  options.registrar = registrar;
  auto pool = make(options);
  std::vector<Block> blocks;
  for (int i = 0; i < 4; ++i) {
    blocks.push_back(get(*pool, MiB(16)));
    for (const Chunk& chunk : blocks.back().chunks())
      EXPECT_TRUE(registrar->covers(chunk.data, chunk.bytes) || registrar->misses(chunk.data, chunk.bytes));
  }
  EXPECT_EQ(pool->stats().pinned_bytes, MiB(24));
  EXPECT_EQ(registrar->pinned_bytes(), size_t{24} << 20);
  EXPECT_FALSE(pool->stats().pinned);
  EXPECT_EQ(pool->stats().pageable_because, "the fake device is out of registrations");
  blocks.clear();
  EXPECT_EQ(pool->trim(), MiB(64));
  EXPECT_EQ(pool->stats().pinned_bytes, Bytes(0));
}

/// Stays in pin() until it is told to go on.
class SlowRegistrar final : public HostRegistrar {
 public:
  Status pin(void*, size_t) noexcept override {
    entered_ = true;
    entered_.notify_all();
    go_on_.wait(false);
    return success();
  }
  void unpin(void*, size_t) noexcept override {}

  void hold() { entered_ = go_on_ = false; }
  void wait_until_entered() { entered_.wait(false); }
  void go_on() {
    go_on_ = true;
    go_on_.notify_all();
  }

 private:
  std::atomic<bool> entered_ = false;
  std::atomic<bool> go_on_ = true;
};

TEST(PoolBadDays, GrowthKeepsNobodyWaitingWhoNeedsNone) {
  auto registrar = std::make_shared<SlowRegistrar>();
  PoolOptions options = small(MiB(64), MiB(4));
  options.registrar = registrar;
  auto pool = make(options);
  Block held = get(*pool, MiB(2));
  (void)get(*pool, MiB(6), true);
  registrar->hold();
  std::thread grows([&] { (void)get(*pool, MiB(4)); });
  registrar->wait_until_entered();
  for (int i = 0; i < 100; ++i) {
    EXPECT_TRUE(get(*pool, MiB(1)));
    EXPECT_TRUE(get(*pool, MiB(6), true));
    held = get(*pool, MiB(1));
    (void)pool->stats();
  }
  EXPECT_EQ(pool->stats().growths, 2) << "the third is still under way";
  registrar->go_on();
  grows.join();
  EXPECT_EQ(pool->stats().growths, 3);
}

TEST(PoolBadDays, CapacityThatShrinksWhileRunningStopsGrowthAndNothingElse) {
  test::SystemTree tree;
  tree.machine(8192, 1000);
  PoolOptions options = small(MiB(512), MiB(4));
  options.system_root = tree.root();
  auto pool = make(options);
  Block held = get(*pool, MiB(3));
  Block idle = get(*pool, MiB(40), true);
  idle = Block();
  tree.machine(8192, 100);  // less than the reserve of 256 MiB
  EXPECT_TRUE(get(*pool, MiB(40), true)) << "what is there is lent as before";
  EXPECT_TRUE(get(*pool, MiB(1)));
  auto refused = pool->acquire({.bytes = MiB(200), .contiguous = true});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.failure().message,
            "refusing to grow by 200 MiB: only 0 B left under /proc/meminfo's MemAvailable (with 256 MiB in reserve)");
  EXPECT_EQ(pool->stats().slab_bytes, MiB(44)) << "a refusal gives nothing idle away for nothing";
  std::memset(held.chunks()[0].data, 1, held.chunks()[0].bytes);
  tree.machine(8192, 1000);
  EXPECT_TRUE(get(*pool, MiB(200), true));
}

[[noreturn]] void exit_with_live_blocks(bool keep_spare) {
  PoolOptions options = small(MiB(64), MiB(4));
  options.keep_spare = keep_spare;
  options.registrar = std::make_shared<test::FakeRegistrar>();
  static Block chunked, single;
  static std::unique_ptr<PinnedPool> pool = make(options);  // dies before its blocks
  chunked = get(*pool, MiB(6));
  single = get(*pool, MiB(6), true);
  std::exit(0);
}

TEST(PoolBadDaysDeathTest, ExitsCleanlyWithLiveBlocks) {
  testing::GTEST_FLAG(death_test_style) = "threadsafe";
  for (const bool keep_spare : {false, true})
    EXPECT_EXIT(exit_with_live_blocks(keep_spare), testing::ExitedWithCode(0), "");
}

TEST(PoolBadDays, ManyThreadsComeAndGo) {
  auto pool = make(small(MiB(64), MiB(4)));
  for (int wave = 0; wave < 8; ++wave) {
    std::vector<std::thread> threads;
    for (int i = 0; i < 32; ++i) threads.emplace_back([&] { (void)get(*pool, KiB(100)); });
    for (std::thread& thread : threads) thread.join();
  }
  EXPECT_EQ(pool->stats().live_bytes, Bytes(0));
  EXPECT_EQ(pool->trim(), pool->stats().peak_slab_bytes);
}

}  // namespace
}  // namespace ebbtide
