// Random use from several threads: no two blocks ever share a byte, and the promises about capacity hold throughout.
#include <ebbtide/pinned_pool/pool.h>

#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <cmath>
#include <cstring>
#include <memory>
#include <mutex>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "tests/pinned_pool/fake_registrar.h"

namespace ebbtide {
namespace {

constexpr int kThreads = 4;
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr int kSteps = 25'000;  // of each thread
#else
constexpr int kSteps = 250'000;
#endif
constexpr Bytes kCapacity = MiB(48);
constexpr Bytes kSlab = MiB(4);

/// A block with a mark in the first and last eight bytes of each chunk.
struct Marked {
  Block block;
  uint64_t mark = 0;

  void write() const {
    for (const Chunk& chunk : block.chunks()) {
      if (chunk.bytes < sizeof mark) continue;
      std::memcpy(chunk.data, &mark, sizeof mark);
      std::memcpy(chunk.data + chunk.bytes - sizeof mark, &mark, sizeof mark);
    }
  }
  bool intact() const {
    for (const Chunk& chunk : block.chunks()) {
      if (chunk.bytes < 2 * sizeof mark) continue;
      if (std::memcmp(chunk.data, &mark, sizeof mark) != 0) return false;
      if (std::memcmp(chunk.data + chunk.bytes - sizeof mark, &mark, sizeof mark) != 0) return false;
    }
    return true;
  }
};

void use(bool keep_spare) {
  auto registrar = std::make_shared<test::FakeRegistrar>();
  {
    auto made = PinnedPool::create(
        {.capacity = kCapacity, .slab_bytes = kSlab, .registrar = registrar, .keep_spare = keep_spare});
    ASSERT_TRUE(made) << made.failure().message;
    const std::unique_ptr<PinnedPool> pool = std::move(made).value();

    std::mutex passed_mutex;
    std::vector<Marked> passed;  // blocks on their way to be freed by another thread
    std::atomic<int> damaged = 0, outside = 0, over = 0;
    std::atomic<int64_t> served = 0;

    const auto work = [&](unsigned seed) {
      std::mt19937_64 random(seed);
      std::vector<Marked> mine;
      for (int step = 0; step < kSteps; ++step) {
        const uint64_t dice = random() % 1000;
        if (dice < 520) {
          const double octaves = std::uniform_real_distribution<>(0, 23.4)(random);  // 1 B to 11 MiB
          const PinnedPool::Request request{.bytes = Bytes(static_cast<int64_t>(std::exp2(octaves))),
                                            .contiguous = random() % 2 == 0,
                                            .may_grow = random() % 8 != 0};
          auto block = pool->acquire(request);
          if (!block) {
            if (!mine.empty()) mine.pop_back();
            continue;
          }
          served.fetch_add(1, std::memory_order_relaxed);
          Marked marked{std::move(block).value(), random()};
          for (const Chunk& chunk : marked.block.chunks())
            outside += registrar->covers(chunk.data, chunk.bytes) ? 0 : 1;
          marked.write();
          mine.push_back(std::move(marked));
        } else if (dice < 995 && !mine.empty()) {
          std::swap(mine[random() % mine.size()], mine.back());
          Marked marked = std::move(mine.back());
          mine.pop_back();
          if (dice < 900) {
            damaged += marked.intact() ? 0 : 1;
            continue;
          }
          std::vector<Marked> to_free;
          const std::lock_guard lock(passed_mutex);
          passed.push_back(std::move(marked));
          if (passed.size() > 8) to_free.swap(passed);
          for (const Marked& other : to_free) damaged += other.intact() ? 0 : 1;
        } else if (dice == 999) {
          pool->trim();
          over += pool->stats().slab_bytes > kCapacity ? 1 : 0;
        }
      }
      for (const Marked& marked : mine) damaged += marked.intact() ? 0 : 1;
    };
    std::array<std::thread, kThreads> threads;
    for (int i = 0; i < kThreads; ++i) threads[i] = std::thread(work, i + 1);
    for (std::thread& thread : threads) thread.join();

    EXPECT_EQ(damaged, 0);
    EXPECT_EQ(outside, 0);
    EXPECT_EQ(over, 0);
    EXPECT_GT(served, kThreads * kSteps / 4);
    for (const Marked& marked : passed) EXPECT_TRUE(marked.intact());
    passed.clear();
    const PoolStats stats = pool->stats();
    EXPECT_EQ(stats.live_bytes, Bytes(0));
    EXPECT_LE(stats.peak_slab_bytes, kCapacity);
    EXPECT_LE(stats.peak_live_bytes, stats.peak_slab_bytes);
    pool->trim();
    if (!keep_spare) {
      EXPECT_EQ(pool->stats().slab_bytes, Bytes(0));
    }
  }
  while (registrar->pinned() != 0)
    std::this_thread::yield();  // the keeper ends by itself; ctest's time limit ends a hang
  EXPECT_EQ(registrar->mismatches(), 0);
}

TEST(PoolProperty, FourThreadsWithoutSpare) {
  use(false);
}
TEST(PoolProperty, FourThreadsWithSpare) {
  use(true);
}

}  // namespace
}  // namespace ebbtide
