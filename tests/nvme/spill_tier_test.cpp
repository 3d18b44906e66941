// The tier as its users have it, on both queues.
#include "spill_fixture.h"

#include <fcntl.h>

#include <map>
#include <semaphore>
#include <thread>

#include "tests/support/eventually.h"

namespace ebbtide::nvme {
namespace {

using Priority = SpillTier::Priority;

/// Threads of this process that do I/O for a tier.
size_t io_threads() {
  size_t count = 0;
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
    const int fd = ::open((task.path() / "comm").c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) continue;  // ended meanwhile
    char name[32] = {};
    const ssize_t got = ::read(fd, name, sizeof name - 1);
    ::close(fd);
    count += got > 0 && std::string(name) == "ebbtide-io\n";
  }
  return count;
}

bool io_threads_end() {
  return test::eventually([] { return io_threads() == 0; });
}

class SpillTierContract : public ::testing::TestWithParam<bool> {
 protected:
  std::unique_ptr<SpillTier> open(SpillOptions options) {
    options.allow_io_uring = GetParam();
    if (options.folders.empty()) options.folders = {folder_.path()};
    if (!options.budget) options.budget = MiB(256);
    auto tier = SpillTier::open(options);
    if (!tier) throw std::runtime_error(tier.failure().message);
    EXPECT_TRUE(GetParam() || !tier.value()->stats().io_uring);
    return std::move(tier).value();
  }
  void TearDown() override { EXPECT_TRUE(io_threads_end()); }
  Folder folder_;
};

INSTANTIATE_TEST_SUITE_P(Both, SpillTierContract, ::testing::Values(true, false),
                         [](const auto& info) { return info.param ? "Uring" : "Threads"; });

TEST_P(SpillTierContract, BringsBackWhatItTook) {
  auto tier = open({});
  for (size_t bytes : {size_t{512}, size_t{65536}, size_t{1} << 20, (size_t{5} << 20) + 512 * 3}) {
    Memory out(bytes, bytes), in(bytes);
    const SpilledItem item = write_now(*tier, bytes, out.piece());
    EXPECT_EQ(item.size(), Bytes(static_cast<int64_t>(bytes)));
    EXPECT_TRUE(read_now(*tier, item, in.piece()));
    EXPECT_TRUE(in == out) << bytes;
  }
}

TEST_P(SpillTierContract, PiecesMayBeCutOtherwiseOnTheWayBack) {
  auto tier = open({});
  Memory out(6 << 20, 3), in(6 << 20);
  const SpilledItem item = write_now(*tier, 1, out.pieces({512, 4096, (3 << 20) + 512}));
  EXPECT_TRUE(read_now(*tier, item, in.pieces({1 << 20, (1 << 20) + 65536, 5 << 20})));
  EXPECT_TRUE(in == out);
}

TEST_P(SpillTierContract, StripesOverFolders) {
  Folder a, b, c;
  SpillOptions options;
  options.folders = {a.path(), b.path(), c.path()};
  auto tier = open(options);
  for (size_t bytes : {size_t{65536}, size_t{10} << 20}) {
    Memory out(bytes, bytes), in(bytes);
    const SpilledItem item = write_now(*tier, 7, out.piece());
    EXPECT_TRUE(read_now(*tier, item, in.piece()));
    EXPECT_TRUE(in == out);
  }
  EXPECT_TRUE(a.empty());
}

TEST_P(SpillTierContract, TellsWhatItDid) {
  auto tier = open({});
  Memory memory(4 << 20, 1);
  SpilledItem item = write_now(*tier, 1, memory.piece());
  EXPECT_TRUE(read_now(*tier, item, memory.piece()));
  tier->close();  // the last completion's thread has done its book-keeping
  SpillStats stats = tier->stats();
  EXPECT_EQ(stats.bytes, MiB(4));
  EXPECT_EQ(stats.written, MiB(4));
  EXPECT_EQ(stats.read, MiB(4));
  EXPECT_EQ(stats.budget, MiB(256));
  EXPECT_GT(stats.write_busy_s, 0);
  EXPECT_GT(stats.read_busy_s, 0);
  EXPECT_EQ(stats.errors, 0);
  EXPECT_NE(stats.description.find(folder_.path()), std::string::npos);
  EXPECT_NE(stats.description.find(stats.io_uring ? "io_uring" : "not io_uring: "), std::string::npos);
  item = {};
  EXPECT_EQ(tier->stats().bytes, Bytes(0));
  EXPECT_EQ(tier->stats().peak_bytes, MiB(4));
}

TEST_P(SpillTierContract, CloseWaitsForAllAndRefusesMore) {
  auto tier = open({});
  Memory memory(2 << 20, 1);
  std::atomic<int> done = 0;
  for (int i = 0; i < 30; ++i) {
    ASSERT_TRUE(tier->write(1, memory.piece(), [&](Result<SpilledItem> item) { done += item.ok(); }));
  }
  tier->close();
  EXPECT_EQ(done, 30);
  auto refused = tier->write(1, memory.piece(), [](auto) { FAIL(); });
  EXPECT_EQ(refused.failure().code, FailureCode::kCancelled);
  EXPECT_TRUE(io_threads_end()) << "after close, before destruction";
}

TEST_P(SpillTierContract, DestroyedWithTransfersInFlightEachEndsOnce) {
  for (int round = 0; round < 10; ++round) {
    auto tier = open({});
    auto memory = std::make_shared<Memory>(3 << 20, 1);
    const std::weak_ptr<Memory> watch = memory;
    std::atomic<int> calls = 0;
    std::vector<SpilledItem> items(20);
    std::counting_semaphore<> ended(0);
    for (int i = 0; i < 20; ++i) {
      // The memory belongs to the closures alone: the address sanitizer sees a transfer that outlives them.
      ASSERT_TRUE(tier->write(i, memory->piece(), [memory, i, &items, &calls, &ended](Result<SpilledItem> item) {
        ++calls;
        if (item)
          items[i] = std::move(item).value();
        else
          EXPECT_EQ(item.failure().code, FailureCode::kCancelled);
        ended.release();
      }));
    }
    memory.reset();
    tier.reset();
    for (int i = 0; i < 20; ++i) ended.acquire();
    EXPECT_TRUE(io_threads_end());
    EXPECT_EQ(calls, 20);
    EXPECT_TRUE(watch.expired());
  }  // items die after their tier
}

TEST_P(SpillTierContract, ItemsMayDieInCallbacks) {
  auto tier = open({});
  Memory memory(1 << 20, 1);
  std::promise<void> done;
  ASSERT_TRUE(tier->write(1, memory.piece(), [&](Result<SpilledItem> item) {
    item = Failure{FailureCode::kCancelled, 0, ""};
    done.set_value();
  }));
  done.get_future().get();
  EXPECT_EQ(tier->stats().bytes, Bytes(0));
}

TEST_P(SpillTierContract, AFullDiskIsAValueAndTheTierGoesOn) {
  Folder small;
  if (!small.mount_tmpfs("16m")) GTEST_SKIP() << "cannot mount: " << std::strerror(errno);
  SpillOptions options;
  options.folders = {small.path()};
  options.budget = GiB(4);
  auto tier = open(options);
  EXPECT_TRUE(tier->stats().ram);
  Memory memory(3 << 20, 1), in(3 << 20);
  std::vector<SpilledItem> items;
  FailureCode code{};
  while (items.size() < 100) {
    Written written;
    auto id = tier->write(items.size(), memory.piece(), written.done());
    if (!id) {
      code = id.failure().code;
      break;
    }
    items.push_back(std::move(written.get()).value());
  }
  EXPECT_EQ(code, FailureCode::kNoSpace);
  EXPECT_GE(items.size(), 4u);
  for (const SpilledItem& item : items) {
    EXPECT_TRUE(read_now(*tier, item, in.piece()));
    EXPECT_TRUE(in == memory);
  }
  items.pop_back();
  EXPECT_TRUE(write_now(*tier, 1, memory.piece())) << "room that was freed is used again";
}

/// Many threads, random sizes, cuts, priorities, cancels, deaths; a model says what each item must hold.
TEST_P(SpillTierContract, HoldsWhatTheModelSays) {
  Folder other;
  SpillOptions options;
  options.folders = {folder_.path(), other.path()};
  options.budget = MiB(96);
  auto tier = open(options);
  std::atomic<int> kept = 0, refused = 0, cancelled = 0;
  const auto work = [&](uint64_t seed) {
    std::mt19937_64 random(seed);
    struct Kept {
      SpilledItem item;
      uint64_t fill;
      size_t bytes;
    };
    std::vector<Kept> items;
    const auto cuts = [&](size_t bytes) {
      std::vector<size_t> at;
      for (size_t i = random() % 4; i > 0; --i) at.push_back(random() % (bytes / 512) * 512);
      std::sort(at.begin(), at.end());
      return at;
    };
    for (int step = 0; step < 60; ++step) {
      const uint64_t what = random() % 8;
      if (what < 4) {
        const size_t bytes = (1 + random() % (random() % 3 ? 400 : 12'000)) * 512;
        const uint64_t fill = random();
        Memory memory(bytes, fill);
        Written written;
        auto id = tier->write(fill, memory.pieces(cuts(bytes)), written.done());
        if (!id) {
          EXPECT_EQ(id.failure().code, FailureCode::kNoSpace) << id.failure().message;
          ++refused;
          continue;
        }
        if (random() % 4 == 0) tier->cancel(id.value());
        auto item = written.get();
        if (item) {
          items.push_back({std::move(item).value(), fill, bytes});
          ++kept;
        } else {
          EXPECT_EQ(item.failure().code, FailureCode::kCancelled) << item.failure().message;
          ++cancelled;
        }
      } else if (what < 7 && !items.empty()) {
        const Kept& chosen = items[random() % items.size()];
        Memory into(chosen.bytes);
        ReadBack back;
        const auto id = tier->read(chosen.item, into.pieces(cuts(chosen.bytes)),
                                   random() % 2 ? Priority::kDemand : Priority::kPrefetch, back.done());
        if (random() % 3 == 0) tier->raise_priority(id);
        const Status status = back.get();
        ASSERT_TRUE(status) << status.failure().message;
        ASSERT_TRUE(into == Memory(chosen.bytes, chosen.fill)) << "seed " << seed << ", step " << step;
      } else if (!items.empty()) {
        items.erase(items.begin() + static_cast<long>(random() % items.size()));
      }
    }
  };
  std::vector<std::thread> threads;
  for (uint64_t seed = 1; seed <= 4; ++seed) threads.emplace_back(work, seed);
  for (std::thread& thread : threads) thread.join();
  tier->close();
  const SpillStats stats = tier->stats();
  EXPECT_EQ(stats.bytes, Bytes(0)) << "all items are dead";
  EXPECT_EQ(stats.errors, 0);
  EXPECT_GT(kept, 50);
}

TEST(SpillTier, RefusesWhatItCannotOpen) {
  SpillOptions options;
  EXPECT_EQ(SpillTier::open(options).failure().code, FailureCode::kInvalid);
  options.folders = {"/nonexistent/folder"};
  const auto tier = SpillTier::open(options);
  ASSERT_FALSE(tier);
  EXPECT_EQ(tier.failure().code, FailureCode::kInvalid);
  EXPECT_NE(tier.failure().message.find("/nonexistent/folder"), std::string::npos);
}

}  // namespace
}  // namespace ebbtide::nvme
