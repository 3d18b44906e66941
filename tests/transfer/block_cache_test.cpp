// Blocks of one size that are used again: by many threads, and beyond their owners' end. Leaks and races are found by
// sanitizers.
#include <ebbtide/transfer/block_cache.h>

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstring>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace ebbtide::test {
namespace {

struct Load {
  std::array<unsigned char, 120> bytes;
};

std::shared_ptr<Load> load(const SharedBlockCache& cache) {
  return std::allocate_shared<Load>(BlockAllocator<Load>(cache));
}

TEST(BlockCacheTest, WhatIsGivenBackIsTakenAgain) {
  const SharedBlockCache cache;
  auto first = load(cache);
  auto second = load(cache);
  EXPECT_NE(first, second);
  const std::array<const void*, 2> before{first.get(), second.get()};
  first.reset();
  second.reset();
  EXPECT_EQ(load(cache).get(), before[1]);  // the latest first: it is in the processor's cache
  first = load(cache);
  second = load(cache);
  EXPECT_EQ(first.get(), before[1]);
  EXPECT_EQ(second.get(), before[0]);
}

TEST(BlockCacheTest, BlocksOutliveTheirOwners) {
  auto cache = std::make_unique<SharedBlockCache>();
  auto copy = std::make_unique<SharedBlockCache>(*cache);
  auto first = load(*cache);
  cache.reset();
  auto second = load(*copy);
  copy.reset();
  std::memset(first->bytes.data(), 1, first->bytes.size());
  first.reset();
  std::memset(second->bytes.data(), 2, second->bytes.size());
}

TEST(BlockCacheTest, ManyThreadsTakeAndGiveWhatOthersTook) {
  constexpr int kThreads = 4, kRounds = 20000, kPlaces = 64;
  auto cache = std::make_unique<SharedBlockCache>();
  struct Place {
    std::mutex mutex;
    std::shared_ptr<Load> load;
  };
  std::array<Place, kPlaces> places;
  std::vector<std::thread> threads;
  for (int number = 0; number < kThreads; ++number) {
    threads.emplace_back([&, number, mine = SharedBlockCache(*cache)] {
      for (int round = 0; round < kRounds; ++round) {
        auto made = load(mine);
        const auto mark = static_cast<unsigned char>(number * 61 + round);
        made->bytes.fill(mark);
        Place& place = places[static_cast<size_t>(round * 7 + number) % kPlaces];
        {
          const std::lock_guard lock(place.mutex);
          place.load.swap(made);
        }
        if (!made) continue;
        for (const unsigned char byte : made->bytes) ASSERT_EQ(byte, made->bytes.front());
      }
    });
  }
  cache.reset();
  for (auto& thread : threads) thread.join();
}

TEST(BlockCacheTest, AForkedChildOfABusyProcessTakesAndGives) {
  const SharedBlockCache cache;
  std::atomic<bool> stop{false};
  std::thread busy([&] {
    while (!stop) load(cache);
  });
  for (int round = 0; round < 20; ++round) {
    const pid_t child = fork();
    ASSERT_NE(child, -1);
    if (child == 0) {
      std::vector<void*> taken;
      for (int number = 0; number < 100; ++number) taken.push_back((*cache).take(sizeof(Load)));
      for (void* block : taken) (*cache).give(block);
      _exit(0);
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  }
  stop = true;
  busy.join();
}

}  // namespace
}  // namespace ebbtide::test
