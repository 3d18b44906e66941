#include <ebbtide/nvme/extent_allocator.h>
#include <gtest/gtest.h>

#include <numeric>
#include <random>

namespace ebbtide::nvme {
namespace {

constexpr uint64_t kUnit = 4096;

TEST(ExtentAllocator, RoundsUpToUnits) {
  ExtentAllocator allocator(kUnit);
  allocator.free({0, 4 * kUnit});
  EXPECT_EQ(allocator.allocate(1), (std::vector<Extent>{{0, kUnit}}));
  EXPECT_EQ(allocator.allocate(kUnit + 1), (std::vector<Extent>{{kUnit, 2 * kUnit}}));
  EXPECT_EQ(allocator.allocate(2 * kUnit), std::nullopt);
  EXPECT_EQ(allocator.free_bytes(), kUnit);
}

TEST(ExtentAllocator, UsesFirstWhatWasFreedLast) {
  ExtentAllocator allocator(kUnit);
  allocator.free({0, 64 * kUnit});
  std::vector<Extent> taken;
  for (int i = 0; i < 8; ++i) taken.push_back(allocator.allocate(kUnit)->front());
  allocator.free(taken[5]);
  allocator.free(taken[1]);
  EXPECT_EQ(allocator.allocate(kUnit)->front(), taken[1]);
  EXPECT_EQ(allocator.allocate(kUnit)->front(), taken[5]);
}

TEST(ExtentAllocator, JoinsNeighbours) {
  ExtentAllocator allocator(kUnit);
  allocator.free({0, 3 * kUnit});
  const auto a = allocator.allocate(kUnit)->front(), b = allocator.allocate(kUnit)->front(),
             c = allocator.allocate(kUnit)->front();
  allocator.free(a);
  allocator.free(c);
  EXPECT_EQ(allocator.holes(), 2u);
  allocator.free(b);
  EXPECT_EQ(allocator.holes(), 1u);
  EXPECT_EQ(allocator.allocate(3 * kUnit), (std::vector<Extent>{{0, 3 * kUnit}}));
}

TEST(ExtentAllocator, BreaksAnItemUpRatherThanRefuse) {
  ExtentAllocator allocator(kUnit);
  allocator.free({0, kUnit});
  allocator.free({4 * kUnit, 3 * kUnit});
  allocator.free({16 * kUnit, 2 * kUnit});
  const auto extents = allocator.allocate(5 * kUnit);
  ASSERT_TRUE(extents);
  EXPECT_EQ(*extents, (std::vector<Extent>{{4 * kUnit, 3 * kUnit}, {16 * kUnit, 2 * kUnit}})) << "largest holes first";
}

/// Against a map of units: no unit is given twice, what is free can be had, and what is wholly free is one hole.
TEST(ExtentAllocator, AgreesWithABitmap) {
  constexpr size_t kUnits = 512;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    std::mt19937_64 random(seed);
    ExtentAllocator allocator(kUnit);
    std::vector<bool> used(kUnits, true);
    std::vector<std::vector<Extent>> items;
    size_t grown = 0;
    const auto mark = [&](const Extent& extent, bool to) {
      for (uint64_t unit = extent.offset / kUnit; unit < (extent.offset + extent.bytes) / kUnit; ++unit) {
        ASSERT_NE(used[unit], to) << "unit " << unit << ", seed " << seed;
        used[unit] = to;
      }
    };
    for (int step = 0; step < 2000; ++step) {
      if (grown < kUnits && random() % 20 == 0) {
        const size_t more = std::min<size_t>(kUnits - grown, 1 + random() % 100);
        allocator.free({grown * kUnit, more * kUnit});
        mark({grown * kUnit, more * kUnit}, false);
        grown += more;
      } else if (!items.empty() && random() % 2 == 0) {
        const size_t which = random() % 2 ? items.size() - 1 : random() % items.size();
        for (const Extent& extent : items[which]) {
          allocator.free(extent);
          mark(extent, false);
        }
        items.erase(items.begin() + static_cast<long>(which));
      } else {
        const uint64_t bytes = 1 + random() % (40 * kUnit);
        const uint64_t free_before = allocator.free_bytes();
        const auto extents = allocator.allocate(bytes);
        ASSERT_EQ(extents.has_value(), allocator.round_up(bytes) <= free_before);
        if (!extents) continue;
        uint64_t total = 0;
        for (const Extent& extent : *extents) {
          total += extent.bytes;
          mark(extent, true);
        }
        ASSERT_EQ(total, allocator.round_up(bytes));
        items.push_back(*extents);
      }
      size_t runs = 0, free_units = 0;
      for (size_t i = 0; i < kUnits; ++i) {
        free_units += !used[i];
        runs += !used[i] && (i == 0 || used[i - 1]);
      }
      ASSERT_EQ(allocator.free_bytes(), free_units * kUnit);
      ASSERT_EQ(allocator.holes(), runs) << "neighbours not joined, seed " << seed;
    }
  }
}

}  // namespace
}  // namespace ebbtide::nvme
