#include "spill_fixture.h"

#include <numeric>
#include <set>

namespace ebbtide::nvme {
namespace {

std::shared_ptr<SpillSpace> open_space(std::vector<std::string> folders, std::optional<Bytes> budget) {
  SpillOptions options;
  options.folders = std::move(folders);
  options.budget = budget;
  auto space = SpillSpace::open(options);
  if (!space) throw std::runtime_error(space.failure().message);
  return std::move(space).value();
}

uint64_t bytes_of(const std::vector<PlacedExtent>& extents) {
  return std::accumulate(extents.begin(), extents.end(), uint64_t{0},
                         [](uint64_t sum, const PlacedExtent& placed) { return sum + placed.extent.bytes; });
}

TEST(SpillSpace, GivesItsWholeBudgetAndNotMore) {
  Folder folder;
  auto space = open_space({folder.path()}, MiB(33));
  std::vector<std::vector<PlacedExtent>> items;
  for (int i = 0; i < 11; ++i) {
    auto item = space->allocate(3 << 20);
    ASSERT_TRUE(item) << item.failure().message;
    items.push_back(std::move(item).value());
  }
  auto more = space->allocate(4096);
  ASSERT_FALSE(more);
  EXPECT_EQ(more.failure().code, FailureCode::kNoSpace);
  EXPECT_NE(more.failure().message.find("33 MiB"), std::string::npos) << more.failure().message;
  EXPECT_NE(more.failure().message.find("4 KiB larger"), std::string::npos) << more.failure().message;
  space->release(items[4]);
  EXPECT_TRUE(space->allocate(3 << 20));
  SpillStats stats;
  space->report(stats);
  EXPECT_EQ(stats.bytes, MiB(33));
  EXPECT_EQ(stats.peak_bytes, MiB(33));
}

TEST(SpillSpace, SpreadsAnItemOverAllFolders) {
  Folder a, b, c;
  auto space = open_space({a.path(), b.path(), c.path()}, MiB(96));
  auto item = space->allocate(9 << 20);
  ASSERT_TRUE(item);
  ASSERT_EQ(item.value().size(), 3u);
  std::set<uint32_t> files;
  for (const PlacedExtent& placed : item.value()) {
    files.insert(placed.file);
    EXPECT_EQ(placed.extent.bytes, uint64_t{3} << 20);
  }
  EXPECT_EQ(files.size(), 3u);
  EXPECT_EQ(space->allocate(64 << 10).value().size(), 1u) << "less than a chunk is not cut";
}

TEST(SpillSpace, NeverHandsOutABadPlaceAgain) {
  Folder folder;
  auto space = open_space({folder.path()}, MiB(16));
  auto item = space->allocate(4 << 20).value();
  item.front().bad = true;
  const Extent bad = item.front().extent;
  space->release(item);
  SpillStats stats;
  space->report(stats);
  EXPECT_EQ(stats.quarantined, Bytes(static_cast<int64_t>(bad.bytes)));
  EXPECT_EQ(stats.bytes, Bytes(0));
  EXPECT_FALSE(space->allocate(16 << 20));
  for (int i = 0; i < 3; ++i) {
    const auto other = space->allocate(4 << 20).value();
    for (const PlacedExtent& placed : other) {
      EXPECT_TRUE(placed.extent.offset + placed.extent.bytes <= bad.offset ||
                  bad.offset + bad.bytes <= placed.extent.offset);
    }
  }
}

TEST(SpillSpace, UsesANearlyFullDiskToItsEnd) {
  Folder folder;
  if (!folder.mount_tmpfs("10m")) GTEST_SKIP() << "cannot mount: " << std::strerror(errno);
  auto space = open_space({folder.path()}, GiB(8));
  uint64_t got = 0;
  for (;;) {
    auto item = space->allocate(1 << 20);
    if (!item) {
      EXPECT_EQ(item.failure().code, FailureCode::kNoSpace);
      EXPECT_EQ(item.failure().system_errno, ENOSPC);
      break;
    }
    got += bytes_of(item.value());
  }
  EXPECT_GE(got, uint64_t{9} << 20);
}

TEST(SpillSpace, AFullFolderLeavesTheWorkToTheOther) {
  Folder full, roomy;
  if (!full.mount_tmpfs("1m")) GTEST_SKIP() << "cannot mount: " << std::strerror(errno);
  auto space = open_space({full.path(), roomy.path()}, MiB(64));
  for (int i = 0; i < 10; ++i) {
    auto item = space->allocate(4 << 20);
    ASSERT_TRUE(item) << item.failure().message;
    EXPECT_EQ(bytes_of(item.value()), uint64_t{4} << 20);
  }
}

TEST(SpillSpace, FasterFoldersGetMore) {
  Folder a, b;
  auto space = open_space({a.path(), b.path()}, MiB(512));
  space->note_speed(0, 3e9);
  EXPECT_NEAR(space->shares()[0], 0.5, 0.01) << "the other's speed is not known yet, and they are equally large";
  space->note_speed(1, 1e9);
  EXPECT_NEAR(space->shares()[0], 0.75, 1e-9);
  uint64_t first = 0, all = 0;
  for (int i = 0; i < 100; ++i) {  // of one chunk and of several
    const auto item = space->allocate(((i % 4) + 1) << 20).value();
    for (const PlacedExtent& placed : item) {
      all += placed.extent.bytes;
      if (placed.file == 0) first += placed.extent.bytes;
    }
    ASSERT_NEAR(static_cast<double>(first), 0.75 * static_cast<double>(all), 2 << 20) << "item " << i;
  }
  space->note_speed(0, 0);  // hangs, and is asked less and less
  for (int i = 0; i < 20; ++i) space->note_speed(0, 1);
  EXPECT_NEAR(space->shares()[0], 1.0 / 33, 1e-9);
  EXPECT_GT(bytes_of(space->allocate(64 << 20).value()), 0u);
}

TEST(SpillSpace, LargerFoldersGetMoreUntilTheirSpeedIsKnown) {
  Folder large, small;
  if (!large.mount_tmpfs("60m") || !small.mount_tmpfs("20m")) GTEST_SKIP() << "cannot mount: " << std::strerror(errno);
  auto space = open_space({large.path(), small.path()}, MiB(64));
  EXPECT_NEAR(space->shares()[0], 0.75, 0.02);
}

/// Room in the slow folder's file alone is no reason to write there: the fast one's file grows.
TEST(SpillSpace, ByItsShareAFileGrowsThoughAnotherHasRoom) {
  Folder a, b;
  auto space = open_space({a.path(), b.path()}, MiB(640));
  space->release(space->allocate(64 << 20).value());
  space->note_speed(0, 31e9);
  space->note_speed(1, 1e9);
  uint64_t first = 0;
  for (int i = 0; i < 8; ++i) {
    for (const PlacedExtent& placed : space->allocate(16 << 20).value())
      if (placed.file == 0) first += placed.extent.bytes;
  }
  EXPECT_GE(first, uint64_t{123} << 20);
}

TEST(SpillSpace, LeavesTheReserveToOthers) {
  Folder folder;
  if (!folder.mount_tmpfs("20m")) GTEST_SKIP() << "cannot mount: " << std::strerror(errno);
  SpillOptions options;
  options.folders = {folder.path()};
  options.budget = GiB(1);
  options.reserve = MiB(8);
  auto space = SpillSpace::open(options).value();
  uint64_t got = 0;
  for (;;) {
    auto item = space->allocate(1 << 20);
    if (!item) {
      EXPECT_EQ(item.failure().code, FailureCode::kNoSpace);
      EXPECT_NE(item.failure().message.find("left free for others"), std::string::npos) << item.failure().message;
      break;
    }
    got += bytes_of(item.value());
  }
  EXPECT_GE(got, uint64_t{11} << 20);
  EXPECT_LE(got, uint64_t{12} << 20);
}

TEST(SpillSpace, DefaultBudgetIsMostOfTheFreeSpace) {
  Folder folder;
  if (!folder.mount_tmpfs("20m")) GTEST_SKIP() << "cannot mount: " << std::strerror(errno);
  auto space = open_space({folder.path(), folder.path()}, std::nullopt);
  SpillStats stats;
  space->report(stats);
  EXPECT_LE(stats.budget, MiB(18)) << "one file system counts once";
  EXPECT_GE(stats.budget, MiB(16));
}

TEST(SpillSpace, RefusesNoFolderAndNoBudget) {
  auto none = SpillSpace::open({});
  ASSERT_FALSE(none);
  EXPECT_EQ(none.failure().code, FailureCode::kInvalid);
  Folder folder;
  SpillOptions options;
  options.folders = {folder.path()};
  options.budget = Bytes(100);
  auto empty = SpillSpace::open(options);
  ASSERT_FALSE(empty);
  EXPECT_EQ(empty.failure().code, FailureCode::kNoSpace);
}

}  // namespace
}  // namespace ebbtide::nvme
