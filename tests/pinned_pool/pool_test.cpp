#include <ebbtide/pinned_pool/page.h>
#include <ebbtide/pinned_pool/pool.h>
#include <ebbtide/pinned_pool/topology.h>

#include <dlfcn.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/pinned_pool/fake_registrar.h"
#include "tests/pinned_pool/pool_support.h"
#include "tests/pinned_pool/system_tree.h"
#include "tests/pinned_pool/topology_xml.h"
#include "tests/support/eventually.h"

namespace ebbtide {
namespace {

using test::get;
using test::make;
using test::small;
using test::sum;
using testing::HasSubstr;

int keepers() {
  int count = 0;
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
    std::ifstream file(task.path() / "comm");
    std::string name;
    if (std::getline(file, name) && name == "ebbtide-pool") ++count;
  }
  return count;
}

TEST(Pool, BlockIsChunksOfAtMost32MiB) {
  auto pool = make(small(MiB(256), MiB(64)));
  const Block block = get(*pool, MiB(70) + Bytes(5));
  EXPECT_EQ(block.size(), MiB(70) + Bytes(5));
  ASSERT_EQ(block.chunks().size(), 4u);
  EXPECT_EQ(block.chunks()[0].bytes, size_t{32} << 20);
  EXPECT_EQ(block.chunks()[2].bytes, size_t{6} << 20);
  EXPECT_EQ(block.chunks()[3].bytes, 5u);
  EXPECT_EQ(sum(block), static_cast<size_t>(block.size().count()));
  for (const Chunk& chunk : block.chunks()) {
    EXPECT_EQ(reinterpret_cast<uintptr_t>(chunk.data) % pinned_pool::page_bytes(), 0u);
    const size_t pages = (chunk.bytes + pinned_pool::page_bytes() - 1) / pinned_pool::page_bytes();
    std::memset(chunk.data, 1, pages * pinned_pool::page_bytes());
  }
  const PoolStats stats = pool->stats();
  EXPECT_EQ(stats.live_bytes, block.size());
  EXPECT_EQ(stats.slabs, 2);
  EXPECT_EQ(stats.slab_bytes, MiB(128));
}

// jemalloc alone would take 10 MiB for 8.5: three such blocks did not fit in 28 MiB.
TEST(Pool, LargeBlocksAreNotRoundedUp) {
  auto pool = make(small(MiB(32), MiB(32)));
  std::vector<Block> blocks;
  for (const Bytes bytes : {MiB(8.5), MiB(8.5), MiB(8.5), MiB(4.5)}) {
    auto block = pool->acquire({.bytes = bytes});
    ASSERT_TRUE(block) << block.failure().message;
    EXPECT_EQ(block.value().chunks().size(), 2u);
    blocks.push_back(std::move(block).value());
  }
  EXPECT_EQ(get(*pool, KiB(1900)).chunks().size(), 1u) << "a small one is not worth two copies";
}

TEST(Pool, GapsServeLargeBlocksBeforeMoreIsMapped) {
  auto pool = make(small(MiB(64), MiB(32)));
  std::vector<Block> blocks;
  for (int i = 0; i < 8; ++i) blocks.push_back(get(*pool, MiB(4)));
  for (int i = 0; i < 8; i += 2) blocks[static_cast<size_t>(i)] = Block();
  const Block scattered = get(*pool, MiB(16));
  EXPECT_EQ(scattered.chunks().size(), 4u);
  EXPECT_EQ(sum(scattered), size_t{16} << 20);
  EXPECT_EQ(pool->stats().growths, 1);
  EXPECT_EQ(get(*pool, MiB(16)).chunks().size(), 1u) << "nothing is free: a slab more, and a whole piece of it";
  EXPECT_EQ(pool->stats().growths, 2);
}

TEST(Pool, ContiguousIsOneChunk) {
  auto pool = make(small(MiB(256), MiB(64)));
  EXPECT_EQ(get(*pool, MiB(50), true).chunks().size(), 1u);
  EXPECT_EQ(get(*pool, Bytes(1), true).chunks().size(), 1u);
  const Block larger_than_a_slab = get(*pool, MiB(100) + Bytes(1), true);
  ASSERT_EQ(larger_than_a_slab.chunks().size(), 1u);
  std::memset(larger_than_a_slab.chunks()[0].data, 1, larger_than_a_slab.chunks()[0].bytes);
}

TEST(Pool, MovedBlocksGiveBackOnce) {
  auto pool = make(small(MiB(16), MiB(4)));
  Block a = get(*pool, MiB(1));
  const std::byte* data = a.chunks()[0].data;
  Block b = std::move(a);
  EXPECT_FALSE(a);  // NOLINT(bugprone-use-after-move): a moved-from block is empty
  EXPECT_EQ(a.size(), Bytes(0));
  EXPECT_EQ(b.chunks()[0].data, data);
  b = get(*pool, MiB(2));
  EXPECT_EQ(pool->stats().live_bytes, MiB(2));
  Block& same = b;
  b = std::move(same);
  EXPECT_TRUE(b);
  b = Block();
  EXPECT_FALSE(b);
  EXPECT_EQ(pool->stats().live_bytes, Bytes(0));
  EXPECT_EQ(pool->stats().peak_live_bytes, MiB(3));
}

TEST(Pool, BlocksOutliveTheirPool) {
  auto registrar = std::make_shared<test::FakeRegistrar>();
  for (const bool spare : {false, true}) {
    PoolOptions options = small(MiB(32), MiB(4));
    options.registrar = registrar;
    options.keep_spare = spare;
    auto pool = make(options);
    Block chunked = get(*pool, MiB(6));
    Block single = get(*pool, MiB(6), true);
    pool.reset();
    for (const Chunk& chunk : chunked.chunks()) std::memset(chunk.data, 2, chunk.bytes);
    std::memset(single.chunks()[0].data, 3, single.chunks()[0].bytes);
    chunked = Block();
    EXPECT_GE(registrar->pinned(), 1u);
    std::thread([last = std::move(single)] {}).join();
    EXPECT_TRUE(test::eventually([&] { return registrar->pinned() == 0; }));
  }
  EXPECT_EQ(registrar->mismatches(), 0);
}

TEST(Pool, KeeperEndsWithTheLastOwner) {
  ASSERT_TRUE(test::eventually([] { return keepers() == 0; }));
  PoolOptions options = small(MiB(64), MiB(4));
  options.keep_spare = true;
  auto pool = make(options);
  Block block = get(*pool, MiB(1));
  EXPECT_TRUE(test::eventually([] { return keepers() == 1; }));
  pool.reset();
  EXPECT_EQ(keepers(), 1);
  block = Block();
  EXPECT_TRUE(test::eventually([] { return keepers() == 0; }));
}

TEST(Pool, SpareIsReadyBeforeItIsNeededAndWithinCapacity) {
  PoolOptions options = small(MiB(12), MiB(4));
  options.keep_spare = true;
  auto pool = make(options);
  std::vector<Block> blocks;
  blocks.push_back(get(*pool, MiB(4)));
  std::optional<Block> from_spare;
  ASSERT_TRUE(test::eventually([&] {
    auto got = pool->acquire({.bytes = MiB(4), .may_grow = false});
    if (got) from_spare = std::move(got).value();
    return from_spare.has_value();
  }));
  ASSERT_TRUE(test::eventually([&] { return pool->stats().slabs == 3; }));
  blocks.push_back(get(*pool, MiB(4)));
  EXPECT_EQ(pool->stats().slab_bytes, MiB(12));  // no room for one more spare
  auto refused = pool->acquire({.bytes = MiB(4)});
  ASSERT_FALSE(refused);
  EXPECT_EQ(pool->stats().peak_slab_bytes, MiB(12));
}

TEST(Pool, SpareMakesRoomForALargeRequest) {
  PoolOptions options = small(MiB(12), MiB(4));
  options.keep_spare = true;
  auto pool = make(options);
  const Block first = get(*pool, MiB(1));
  ASSERT_TRUE(test::eventually([&] { return pool->stats().slabs == 2; }));
  EXPECT_TRUE(get(*pool, MiB(8), true));
  EXPECT_LE(pool->stats().peak_slab_bytes, MiB(12));
}

TEST(Pool, RefusesOverCapacityWithNumbers) {
  auto pool = make(small(MiB(8), MiB(4)));
  const Block held = get(*pool, MiB(8));
  auto refused = pool->acquire({.bytes = MiB(1)});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.failure().code, FailureCode::kOverCapacity);
  EXPECT_THAT(
      refused.failure().message,
      HasSubstr("refusing to grow by 4 MiB: 8 MiB of the pool's capacity of 8 MiB are mapped, 8 MiB of it in use"));
  EXPECT_THAT(pool->acquire({.bytes = MiB(9)}).failure().message,
              HasSubstr("a block of 9 MiB is more than the pool's capacity of 8 MiB"));
  EXPECT_EQ(pool->stats().refusals, 2);
}

TEST(Pool, RefusesWhatMakesNoSense) {
  auto pool = make(small(MiB(8), MiB(4)));
  EXPECT_EQ(pool->acquire({.bytes = Bytes(0)}).failure().code, FailureCode::kInvalid);
  EXPECT_EQ(pool->acquire({.bytes = Bytes(-1)}).failure().code, FailureCode::kInvalid);
  EXPECT_EQ(PinnedPool::create(small(MiB(1), MiB(1))).failure().code, FailureCode::kInvalid);
  EXPECT_EQ(PinnedPool::create(small(MiB(8), MiB(16))).failure().code, FailureCode::kInvalid);
}

TEST(Pool, FailedAcquireGivesBackWhatItHad) {
  auto pool = make(small(MiB(8), MiB(4)));
  const Block held = get(*pool, MiB(3));
  EXPECT_FALSE(pool->acquire({.bytes = MiB(8)}));
  EXPECT_EQ(pool->stats().live_bytes, MiB(3));
  EXPECT_TRUE(get(*pool, MiB(4)));
}

TEST(Pool, MayNotGrowMeansOnlyWhatIsThere) {
  auto pool = make(small(MiB(32), MiB(4)));
  EXPECT_FALSE(pool->acquire({.bytes = MiB(1), .may_grow = false}));
  EXPECT_FALSE(pool->acquire({.bytes = MiB(6), .contiguous = true, .may_grow = false}));
  EXPECT_EQ(pool->stats().growths, 0);
  (void)get(*pool, MiB(1));
  (void)get(*pool, MiB(6), true);
  EXPECT_TRUE(pool->acquire({.bytes = MiB(1), .may_grow = false}));
  EXPECT_TRUE(pool->acquire({.bytes = MiB(6), .contiguous = true, .may_grow = false}));
  EXPECT_EQ(pool->stats().growths, 2);
}

TEST(Pool, RefusesUnderTheCgroupsLimitAndNamesIt) {
  test::SystemTree tree;
  tree.machine(8192, 8000);
  tree.write("/proc/self/mountinfo", "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n");
  tree.write("/proc/self/cgroup", "4:memory:/x\n");
  tree.write("/sys/fs/cgroup/memory/x/memory.limit_in_bytes", std::to_string(256 << 20));
  tree.write("/sys/fs/cgroup/memory/x/memory.usage_in_bytes", std::to_string(200 << 20));
  PoolOptions options = small(MiB(128), MiB(64));
  options.system_root = tree.root();
  auto pool = make(options);
  auto refused = pool->acquire({.bytes = MiB(1)});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.failure().code, FailureCode::kOverCapacity);
  EXPECT_EQ(refused.failure().message,
            "refusing to grow by 64 MiB: only 40 MiB left under /sys/fs/cgroup/memory/x (with 16 MiB in reserve)");
  EXPECT_EQ(pool->stats().slab_bytes, Bytes(0));
  tree.write("/sys/fs/cgroup/memory/x/memory.usage_in_bytes", std::to_string(100 << 20));
  EXPECT_TRUE(get(*pool, MiB(1)));
}

TEST(Pool, DefaultCapacityIsHalfOfWhatIsLeft) {
  test::SystemTree tree;
  tree.machine(1024, 532);
  auto pool = make({.keep_spare = false, .system_root = tree.root()});
  EXPECT_EQ(pool->stats().capacity, MiB((532 - 32) / 2));
  tree.machine(1024, 33);
  EXPECT_EQ(PinnedPool::create({.system_root = tree.root()}).failure().code, FailureCode::kOverCapacity);
}

TEST(Pool, SmallCapacityMeansSmallSlabs) {
  auto pool = make({.capacity = MiB(96), .keep_spare = false});
  (void)get(*pool, MiB(1));
  EXPECT_EQ(pool->stats().slab_bytes, MiB(16));
}

// CPU training asks for the same large sizes again and again: mapping 25 MiB each time would cost more than the copy.
TEST(Pool, EqualLargeRequestsAreServedFromTheSameSlab) {
  auto pool = make({.capacity = MiB(96), .keep_spare = false});
  for (int step = 0; step < 10; ++step) {
    const Block a = get(*pool, MiB(25), true);
    const Block b = get(*pool, MiB(25) - KiB(100), true);
    EXPECT_NE(a.chunks()[0].slab, b.chunks()[0].slab);
  }
  EXPECT_EQ(pool->stats().growths, 2);
  EXPECT_EQ(pool->stats().slab_bytes, MiB(26 * 2));
}

TEST(Pool, IdleLargeSlabsMakeRoomForOtherSizesOldestFirst) {
  auto pool = make({.capacity = MiB(96), .keep_spare = false});
  Block a = get(*pool, MiB(40), true);
  Block b = get(*pool, MiB(30), true);
  a = Block();
  b = Block();
  const Block c = get(*pool, MiB(50), true);  // 70 mapped, 24 to free: the 40 was idle first
  EXPECT_EQ(pool->stats().slab_bytes, MiB(80));
  const Block b_again = get(*pool, MiB(30), true);
  EXPECT_EQ(pool->stats().growths, 3);
  auto refused = pool->acquire({.bytes = MiB(40), .contiguous = true});
  EXPECT_FALSE(refused);
  EXPECT_EQ(pool->stats().slab_bytes, MiB(80)) << "a refusal gives nothing idle away for nothing";
  (void)get(*pool, MiB(5));  // 16 MiB slab: just fits
  EXPECT_EQ(pool->stats().slab_bytes, MiB(96));
}

TEST(Pool, IdleChunkSlabsMakeRoomForALargeRequestAndBack) {
  auto pool = make(small(MiB(32), MiB(4)));
  for (int round = 0; round < 3; ++round) {
    (void)get(*pool, MiB(32));
    EXPECT_EQ(pool->stats().slab_bytes, MiB(32));
    (void)get(*pool, MiB(31), true);
    EXPECT_EQ(pool->stats().slab_bytes, MiB(32));
  }
  EXPECT_EQ(pool->stats().peak_slab_bytes, MiB(32));
}

TEST(Pool, TrimGivesBackAllThatIsIdle) {
  auto pool = make(small(MiB(64), MiB(4)));
  (void)get(*pool, MiB(20));
  (void)get(*pool, MiB(10), true);
  EXPECT_EQ(pool->stats().slab_bytes, MiB(30));
  {
    const Block held = get(*pool, MiB(1));
    EXPECT_EQ(pool->trim(), MiB(10));  // the large one; jemalloc gives back all of an arena or nothing
  }
  EXPECT_EQ(pool->trim(), MiB(20));
  EXPECT_EQ(pool->stats().slab_bytes, Bytes(0));
  EXPECT_EQ(pool->stats().slabs, 0);
  EXPECT_EQ(pool->trim(), Bytes(0));
  EXPECT_TRUE(get(*pool, MiB(20)));
}

TEST(Pool, SlabNumbersAreDenseAndReused) {
  auto pool = make(small(MiB(64), MiB(4)));
  {
    const Block blocks[] = {get(*pool, MiB(4)), get(*pool, MiB(6), true), get(*pool, MiB(4))};
    EXPECT_EQ(blocks[0].chunks()[0].slab, 0u);
    EXPECT_EQ(blocks[1].chunks()[0].slab, 1u);
    EXPECT_EQ(blocks[2].chunks()[0].slab, 2u);
  }
  pool->trim();
  EXPECT_EQ(get(*pool, MiB(8), true).chunks()[0].slab, 0u);
}

TEST(Pool, EveryChunkLiesInOneRegistration) {
  auto registrar = std::make_shared<test::FakeRegistrar>();
  PoolOptions options = small(MiB(64), MiB(4));
  options.registrar = registrar;
  auto pool = make(options);
  const Block blocks[] = {get(*pool, MiB(9)), get(*pool, MiB(3), true), get(*pool, MiB(11), true),
                          get(*pool, KiB(100))};
  for (const Block& block : blocks) {
    for (const Chunk& chunk : block.chunks()) EXPECT_TRUE(registrar->covers(chunk.data, chunk.bytes));
  }
  EXPECT_TRUE(pool->stats().pinned);
  EXPECT_EQ(pool->stats().pageable_because, "");
}

TEST(Pool, RefusedPinsAreSaid) {
  auto registrar = std::make_shared<test::FakeRegistrar>();
  PoolOptions options = small(MiB(64), MiB(4));
  options.registrar = registrar;
  auto pool = make(options);
  const Block pinned = get(*pool, MiB(4));
  registrar->refuse(true);
  const Block pageable = get(*pool, MiB(4));
  EXPECT_FALSE(pool->stats().pinned);
  EXPECT_EQ(pool->stats().pageable_because, "the fake device is out of registrations");
}

TEST(Pool, RepeatingStepsGrowNoMoreAfterTheFirst) {
  auto pool = make(small(MiB(96), MiB(16)));
  int64_t growths = 0;
  for (int step = 0; step < 1000; ++step) {
    std::vector<Block> blocks;
    for (int layer = 0; layer < 6; ++layer) {
      for (const Bytes bytes : {MiB(1), MiB(3) + KiB(4), MiB(4), MiB(1.5), KiB(300)})
        blocks.push_back(get(*pool, bytes));
    }
    while (!blocks.empty()) blocks.pop_back();
    if (step == 0) growths = pool->stats().growths;
  }
  EXPECT_EQ(pool->stats().growths, growths);
  EXPECT_EQ(pool->trim(), MiB(16) * growths);
  EXPECT_EQ(pool->stats().slab_bytes, Bytes(0));
  EXPECT_EQ(pool->stats().returns, growths);
}

TEST(Pool, OneByteIsServed) {
  auto pool = make(small(MiB(8), MiB(4)));
  const Block block = get(*pool, Bytes(1));
  ASSERT_EQ(block.chunks().size(), 1u);
  EXPECT_EQ(block.chunks()[0].bytes, 1u);
  EXPECT_EQ(pool->stats().live_bytes, Bytes(1));
}

class TwoNodes : public testing::Test {
 protected:
  void SetUp() override {
    auto loaded = Topology::from_xml(EBBTIDE_TEST_DATA "/dual_socket_gpus.xml");
    ASSERT_TRUE(loaded) << loaded.failure().message;
    options_ = small(MiB(16), MiB(4));
    options_.topology = std::make_shared<const Topology>(std::move(loaded).value());
    options_.system_root = tree_.root();
    node(0, 1000);
    node(1, 1000);
  }
  void node(int number, int64_t free_mib) {
    const std::string prefix = "Node " + std::to_string(number) + " ";
    tree_.write("/sys/devices/system/node/node" + std::to_string(number) + "/meminfo",
                prefix + "MemTotal: 1048576 kB\n" + prefix + "MemFree: " + std::to_string(free_mib * 1024) + " kB\n");
  }
  test::SystemTree tree_;
  PoolOptions options_;
};

TEST_F(TwoNodes, BlocksComeFromTheNodeAskedFor) {
  auto pool = make(options_);
  for (const NumaNode node : {NumaNode{1}, NumaNode{0}, NumaNode{1}}) {
    auto block = pool->acquire({.bytes = MiB(1), .node = node});
    ASSERT_TRUE(block);
    EXPECT_EQ(block.value().node(), node);
  }
  EXPECT_EQ(pool->stats().other_node, 0);
  EXPECT_EQ(pool->stats().slabs, 2);
  EXPECT_THAT(pool->stats().unbound_because, HasSubstr("another machine"));
}

TEST_F(TwoNodes, FullNodeSendsToTheOtherAndCounts) {
  auto pool = make(options_);
  node(1, 33);  // 1 MiB beyond the reserve
  auto block = pool->acquire({.bytes = MiB(1), .node = NumaNode{1}});
  ASSERT_TRUE(block) << block.failure().message;
  EXPECT_EQ(block.value().node(), NumaNode{0});
  EXPECT_EQ(pool->stats().other_node, 1);
  node(0, 0);
  auto refused = pool->acquire({.bytes = MiB(16), .node = NumaNode{1}});
  ASSERT_FALSE(refused);
  EXPECT_THAT(refused.failure().message, HasSubstr("only 1 MiB left under /sys/devices/system/node/node1"));
}

/// A cpuset with one node of a machine of two: what the other has free is not for us.
TEST_F(TwoNodes, OnlyOneOfThemAllowedItsOwnRoomBounds) {
  std::string xml = test::text_of(EBBTIDE_TEST_DATA "/dual_socket_gpus.xml");
  test::replace_all(xml, "allowed_nodeset=\"0x00000007\"", "allowed_nodeset=\"0x00000001\"");
  tree_.write("/machine.xml", xml);
  auto loaded = Topology::from_xml(tree_.root() + "/machine.xml");
  ASSERT_TRUE(loaded) << loaded.failure().message;
  options_.topology = std::make_shared<const Topology>(std::move(loaded).value());
  ASSERT_EQ(options_.topology->nodes(), std::vector{NumaNode{0}});
  auto pool = make(options_);
  node(0, 33);  // 1 MiB beyond the reserve
  auto refused = pool->acquire({.bytes = MiB(1)});
  ASSERT_FALSE(refused);
  EXPECT_THAT(refused.failure().message, HasSubstr("only 1 MiB left under /sys/devices/system/node/node0"));
}

TEST_F(TwoNodes, UnknownNodeIsServedByAnother) {
  auto pool = make(options_);
  EXPECT_TRUE(pool->acquire({.bytes = MiB(1), .node = NumaNode{7}}));
  EXPECT_EQ(pool->stats().other_node, 1);
}

TEST_F(TwoNodes, IdleMemoryOfOneNodeMakesRoomOnTheOther) {
  auto pool = make(options_);
  { auto all = pool->acquire({.bytes = MiB(16), .node = NumaNode{0}}); }
  auto block = pool->acquire({.bytes = MiB(16), .node = NumaNode{1}});
  ASSERT_TRUE(block) << block.failure().message;
  EXPECT_EQ(block.value().node(), NumaNode{1});
  EXPECT_LE(pool->stats().peak_slab_bytes, MiB(16));
}

TEST(Pool, UnboundPoolHasNoNode) {
  PoolOptions options = small(MiB(16), MiB(4));
  options.numa_bind = false;
  auto pool = make(options);
  auto block = pool->acquire({.bytes = MiB(1), .node = NumaNode{0}});
  ASSERT_TRUE(block);
  EXPECT_EQ(block.value().node(), kAnyNode);
  EXPECT_EQ(pool->stats().unbound_because, "");
}

TEST(Pool, ProcessKeepsItsOwnMalloc) {
  (void)get(*make(small(MiB(8), MiB(4))), MiB(1));
  Dl_info own{};
  ASSERT_NE(::dladdr(reinterpret_cast<void*>(&make), &own), 0);
  for (const char* name : {"malloc", "free", "calloc", "realloc", "posix_memalign", "_Znwm", "_ZdlPv"}) {
    void* symbol = ::dlsym(RTLD_DEFAULT, name);
    ASSERT_NE(symbol, nullptr) << name;
    Dl_info from{};
    ASSERT_NE(::dladdr(symbol, &from), 0);
    EXPECT_STRNE(from.dli_fname, own.dli_fname) << name << " has come in with jemalloc";
  }
}

}  // namespace
}  // namespace ebbtide
