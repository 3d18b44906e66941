// Memory that io_uring has registered: slabs as they come and go.
#include <ebbtide/pinned_pool/pool.h>

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <optional>
#include <stdexcept>
#include <string>

#include "child.h"
#include "spill_fixture.h"
#include "tests/support/eventually.h"

namespace ebbtide::nvme {
namespace {

class FixedBuffersTest : public ::testing::Test {
 protected:
  static constexpr int64_t kSlabMiB = 2;

  void open(size_t folders = 1) {
    SpillOptions options;
    for (size_t i = 0; i < folders; ++i) options.folders.push_back(folder_[i].path());
    options.budget = MiB(64);
    auto tier = SpillTier::open(options);
    ASSERT_TRUE(tier) << tier.failure().message;
    tier_ = std::move(tier).value();
    PoolOptions pool;
    pool.capacity = MiB(256);
    pool.slab_bytes = MiB(kSlabMiB);
    pool.watcher = tier_->watcher();
    pool.keep_spare = false;
    pool_ = PinnedPool::create(std::move(pool)).value();
  }
  bool uring() const { return tier_->stats().io_uring; }
  Block acquire(Bytes bytes = MiB(1)) { return pool_->acquire({.bytes = bytes, .contiguous = true}).value(); }
  static std::vector<IoPiece> piece(const Block& block) {
    return {{block.chunks()[0].data, static_cast<size_t>(block.size().count())}};
  }
  static void fill(const Block& block, int value) {
    std::memset(block.chunks()[0].data, value, static_cast<size_t>(block.size().count()));
  }
  static bool holds(const Block& block, int value) {
    const std::byte* data = block.chunks()[0].data;
    return std::all_of(data, data + block.size().count(), [&](std::byte b) { return b == std::byte(value); });
  }
  bool registered(Bytes bytes) {
    return test::eventually([&] { return tier_->stats().registered == bytes; });
  }
  /// Out of one block and back into another.
  void round_trip(const Block& from, const Block& to, int value) {
    fill(from, value);
    const SpilledItem item = write_now(*tier_, static_cast<uint64_t>(value), piece(from));
    fill(to, 0);
    EXPECT_TRUE(read_now(*tier_, item, piece(to)));
    EXPECT_TRUE(holds(to, value));
  }

  Folder folder_[2];
  std::unique_ptr<SpillTier> tier_;
  std::unique_ptr<PinnedPool> pool_;
};

TEST_F(FixedBuffersTest, SlabsAreRegisteredWhileTheyAreThere) {
  open(2);
  if (!uring()) GTEST_SKIP() << tier_->stats().description;
  {
    const Block from = acquire(MiB(5)), to = acquire(MiB(5));  // slabs of their own
    EXPECT_TRUE(registered(MiB(2 * (6 + 6)))) << "with each folder's ring: " << to_string(tier_->stats().registered);
    round_trip(from, to, 7);
  }
  EXPECT_EQ(pool_->trim(), MiB(12));
  EXPECT_TRUE(registered(Bytes(0)));
}

/// What was registered at an address must not be taken for what is mapped there later.
TEST_F(FixedBuffersTest, NewMemoryAtAnOldAddressIsNotTheOld) {
  open();
  constexpr size_t kHalf = size_t{kSlabMiB} << 19;
  const auto watcher = tier_->watcher();
  const auto map = [](void* at, int protection, int flags) {
    return ::mmap(at, 2 * kHalf, protection, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
  };
  void* const place = map(nullptr, PROT_NONE, 0);
  ASSERT_NE(place, MAP_FAILED);
  auto* const from = static_cast<std::byte*>(place);
  std::byte* const to = from + kHalf;
  for (int round = 1; round < 40; ++round) {
    ASSERT_EQ(map(place, PROT_READ | PROT_WRITE, MAP_FIXED), place);
    watcher->came(from, 2 * kHalf);
    if (uring() && round % 2 == 0) EXPECT_TRUE(registered(MiB(kSlabMiB)));  // else in whatever state it is
    std::memset(from, round, kHalf);
    const SpilledItem item = write_now(*tier_, static_cast<uint64_t>(round), {{from, kHalf}});
    EXPECT_TRUE(read_now(*tier_, item, {{to, kHalf}}));
    EXPECT_EQ(std::memcmp(from, to, kHalf), 0) << round;
    watcher->goes(from, 2 * kHalf);
    ASSERT_EQ(map(place, PROT_NONE, MAP_FIXED), place);
  }
  ::munmap(place, 2 * kHalf);
}

TEST_F(FixedBuffersTest, MoreSlabsThanSlotsAreServedAllTheSame) {
  open();
  std::vector<Block> blocks;
  for (int i = 0; i < 70; ++i) blocks.push_back(acquire(MiB(kSlabMiB)));
  if (uring()) EXPECT_TRUE(registered(MiB(64 * kSlabMiB)));
  for (size_t i = 0; i + 1 < blocks.size(); i += 23) round_trip(blocks[i], blocks[blocks.size() - 1 - i], 3);
}

TEST_F(FixedBuffersTest, TransfersAcrossTheirEdgesAreServed) {
  open();
  Memory memory(8 << 20, 1), in(8 << 20);
  const auto watcher = tier_->watcher();
  watcher->came(memory.data() + (1 << 20) + 512, 3 << 20);
  if (uring()) EXPECT_TRUE(registered(MiB(3)));
  const SpilledItem item = write_now(*tier_, 1, memory.piece());
  EXPECT_TRUE(read_now(*tier_, item, in.piece()));
  EXPECT_TRUE(in == memory);
  watcher->goes(memory.data(), memory.bytes());
  EXPECT_TRUE(registered(Bytes(0)));
  EXPECT_TRUE(read_now(*tier_, item, memory.piece()));
}

/// So many bytes of address space, over and over the same few pages.
class RepeatedMemory {
 public:
  explicit RepeatedMemory(size_t bytes) : bytes_(bytes) {
    const int file = ::memfd_create("ebbtide-test", MFD_CLOEXEC);
    void* const all = ::mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (file < 0 || ::ftruncate(file, kPart) != 0 || all == MAP_FAILED) throw std::runtime_error("no memory to repeat");
    data_ = static_cast<std::byte*>(all);
    for (size_t at = 0; at < bytes; at += kPart) {
      if (::mmap(data_ + at, kPart, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file, 0) == MAP_FAILED)
        throw std::runtime_error("cannot repeat memory");
    }
    ::close(file);
  }
  RepeatedMemory(const RepeatedMemory&) = delete;
  RepeatedMemory& operator=(const RepeatedMemory&) = delete;
  ~RepeatedMemory() { ::munmap(data_, bytes_); }
  std::byte* data() const { return data_; }

 private:
  static constexpr size_t kPart = size_t{64} << 20;
  const size_t bytes_;
  std::byte* data_ = nullptr;
};

/// The kernel takes 1 GiB in one piece, and refuses more.
TEST_F(FixedBuffersTest, MoreThanAGibibyteIsRegisteredInParts) {
  open();
  if (!uring()) GTEST_SKIP() << tier_->stats().description;
  constexpr size_t kGibibyte = size_t{1} << 30;
  const RepeatedMemory memory(kGibibyte + (size_t{128} << 20));
  const auto watcher = tier_->watcher();
  watcher->came(memory.data(), kGibibyte + (size_t{128} << 20));
  EXPECT_TRUE(registered(MiB(1024 + 128))) << to_string(tier_->stats().registered);
  const std::vector<IoPiece> across = {{memory.data() + kGibibyte - (1 << 19), 2 << 20}};
  std::memset(across[0].data, 5, across[0].bytes);
  const SpilledItem item = write_now(*tier_, 1, across);
  std::memset(across[0].data, 0, across[0].bytes);
  EXPECT_TRUE(read_now(*tier_, item, across));
  EXPECT_TRUE(
      std::all_of(across[0].data, across[0].data + across[0].bytes, [](std::byte b) { return b == std::byte{5}; }));
  watcher->goes(memory.data(), kGibibyte + (size_t{128} << 20));
  EXPECT_TRUE(registered(Bytes(0)));
}

/// Bytes of this process that the kernel has pinned for somebody.
std::optional<Bytes> pinned() {
  std::ifstream file("/proc/self/status");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("VmPin:")) return KiB(std::stoll(line.substr(6)));
  }
  return std::nullopt;
}

TEST_F(FixedBuffersTest, AChildThatOutlivesTheTierKeepsNothingRegistered) {
#ifdef __SANITIZE_THREAD__
  GTEST_SKIP() << "around a fork jemalloc holds more locks than ThreadSanitizer's deadlock detector has room for";
#endif
  open();
  if (!uring()) GTEST_SKIP() << tier_->stats().description;
  const auto before = pinned();
  if (!before) GTEST_SKIP() << "this kernel does not say what is pinned";
  const Memory memory(8 << 20, 1);
  const auto watcher = tier_->watcher();
  watcher->came(memory.data(), memory.bytes());
  ASSERT_TRUE(registered(MiB(8)));
  EXPECT_GE(*pinned() - *before, MiB(8));
  const IdleChild child;
  tier_.reset();
  EXPECT_TRUE(test::eventually([&] { return *pinned() <= *before; })) << to_string(*pinned() - *before);
  EXPECT_TRUE(child.lives());
}

TEST_F(FixedBuffersTest, PoolAndTierMayEndInAnyOrder) {
  open();
  Block block = acquire();
  tier_.reset();
  const Block later = acquire(MiB(5));
  block = Block();
  pool_.reset();
}

}  // namespace
}  // namespace ebbtide::nvme
