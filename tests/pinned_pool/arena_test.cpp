#include <ebbtide/pinned_pool/arena.h>
#include <ebbtide/pinned_pool/page.h>

#include <gtest/gtest.h>

#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace ebbtide::pinned_pool {
namespace {

constexpr size_t kSlab = 8 * kHugePage;

class ArenaTest : public testing::Test {
 protected:
  void SetUp() override {
    auto arena = Arena::create(kSlab);
    ASSERT_TRUE(arena) << arena.failure().message;
    arena_ = std::move(arena).value();
  }
  void push() {
    auto slab = Slab::make({.bytes = kSlab});
    ASSERT_TRUE(slab) << slab.failure().message;
    bases_.push_back(slab.value().data());
    arena_->push(NumberedSlab{std::move(slab).value(), static_cast<uint32_t>(bases_.size() - 1)});
  }
  bool inside(const Arena::Allocation& got, size_t bytes) const {
    const std::byte* base = bases_[got.slab];
    return got.data >= base && got.data + bytes <= base + kSlab;
  }

  std::unique_ptr<Arena> arena_;
  std::vector<const std::byte*> bases_;
};

TEST_F(ArenaTest, NeverMapsAnythingItself) {
  EXPECT_FALSE(arena_->allocate(page_bytes()));
  EXPECT_FALSE(arena_->allocate(kSlab));
  EXPECT_EQ(arena_->growths(), 0u);
}

// jemalloc kept 2 MiB of address space for each, in a mapping of its own: after some tens of thousands of stores, or of
// trims, there were no mappings left.
TEST_F(ArenaTest, WhatIsDestroyedOrRecycledLeavesNothingMapped) {
  const auto mapped = [] {
    std::ifstream maps("/proc/self/maps");
    int64_t total = 0;
    for (std::string line; std::getline(maps, line);) {
      uint64_t begin = 0, end = 0;
      EXPECT_EQ(std::sscanf(line.c_str(), "%" SCNx64 "-%" SCNx64, &begin, &end), 2);
      total += static_cast<int64_t>(end - begin);
    }
    return total;
  };
  push();
  const auto use = [&] {
    auto other = Arena::create(kSlab);
    ASSERT_TRUE(other) << other.failure().message;
    for (int i = 0; i < 4; ++i) {
      const auto got = arena_->allocate(kSlab / 2);
      ASSERT_TRUE(got);
      arena_->deallocate(got->data);
      arena_->recycle();
    }
  };
  use();
  const int64_t before = mapped();
  for (int i = 0; i < 100; ++i) use();
  EXPECT_LT(mapped() - before, 16 << 20);
}

TEST_F(ArenaTest, TakesExactlyOneSlabEachTimeItGrows) {
  for (int slab = 0; slab < 5; ++slab) {
    EXPECT_FALSE(arena_->allocate(kSlab));
    push();
    push();
    const auto whole = arena_->allocate(kSlab);
    ASSERT_TRUE(whole);
    EXPECT_TRUE(inside(*whole, kSlab));
    EXPECT_TRUE(arena_->has_ready());
    const auto second = arena_->allocate(kSlab);
    ASSERT_TRUE(second);
    EXPECT_FALSE(arena_->has_ready());
  }
  EXPECT_EQ(arena_->growths(), 10u);
  EXPECT_EQ(arena_->idle_slabs(), 0u);
  arena_->recycle();  // in use: nothing happens
  EXPECT_FALSE(arena_->has_ready());
  for (const std::byte* base : bases_) arena_->deallocate(const_cast<std::byte*>(base));
}

TEST_F(ArenaTest, FreedNeighboursMergeButNeverAcrossSlabs) {
  push();
  push();
  std::vector<Arena::Allocation> pieces;
  while (auto piece = arena_->allocate(kSlab / 8)) pieces.push_back(*piece);
  EXPECT_EQ(pieces.size(), 16u);
  for (const auto& piece : pieces) {
    EXPECT_TRUE(inside(piece, kSlab / 8));
    arena_->deallocate(piece.data);
  }
  // Merged back into whole slabs, each allocation inside one, though the kernel likes to map neighbours.
  std::set<uint32_t> slabs;
  std::vector<Arena::Allocation> wholes;
  while (auto whole = arena_->allocate(kSlab)) {
    EXPECT_TRUE(inside(*whole, kSlab));
    slabs.insert(whole->slab);
    wholes.push_back(*whole);
  }
  EXPECT_EQ(slabs.size(), 2u);
  for (const auto& whole : wholes) arena_->deallocate(whole.data);
}

TEST_F(ArenaTest, RecycledSlabsComeBackAndServeAgain) {
  push();
  push();
  for (int round = 0; round < 3; ++round) {
    std::vector<Arena::Allocation> got;
    while (auto piece = arena_->allocate(3 << 20)) got.push_back(*piece);
    EXPECT_GE(got.size(), 8u);
    for (const auto& piece : got) arena_->deallocate(piece.data);
    EXPECT_EQ(arena_->idle_slabs(), 2u);
    arena_->recycle();
    auto first = arena_->pop_ready();
    auto second = arena_->pop_ready();
    ASSERT_TRUE(first && second);
    EXPECT_FALSE(arena_->pop_ready());
    std::memset(first->slab.data(), 0, kSlab);
    arena_->push(*std::move(first));
    arena_->push(*std::move(second));
  }
}

TEST_F(ArenaTest, SizesAreWholePagesAndAligned) {
  push();
  const size_t page = page_bytes();
  std::vector<Arena::Allocation> got;
  size_t all = 0;
  for (size_t bytes = page; all + bytes < kSlab / 2 && got.size() < 64; bytes += page) {
    const auto piece = arena_->allocate(bytes);
    ASSERT_TRUE(piece);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(piece->data) % page, 0u);
    std::memset(piece->data, static_cast<int>(bytes / page), bytes);
    got.push_back(*piece);
    all += bytes;
  }
  for (size_t i = 0; i < got.size(); ++i) {
    const size_t pages = i + 1;
    EXPECT_EQ(static_cast<unsigned char>(got[i].data[0]), pages);
    EXPECT_EQ(static_cast<unsigned char>(got[i].data[pages * page - 1]), pages);
    arena_->deallocate(got[i].data);
  }
}

}  // namespace
}  // namespace ebbtide::pinned_pool
