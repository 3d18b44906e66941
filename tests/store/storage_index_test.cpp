#include <ebbtide/store/storage_index.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <random>
#include <utility>

namespace ebbtide::test {
namespace {

const void* identity(uint64_t number) {
  return reinterpret_cast<const void*>((number + 1) * 16);
}

TEST(StorageIndex, EmptyHasNothing) {
  StorageIndex index;
  EXPECT_EQ(index.find(identity(1)), nullptr);
  index.erase(identity(1));
  EXPECT_EQ(index.size(), 0U);
}

TEST(StorageIndex, IsAMap) {
  StorageIndex index;
  std::map<uint64_t, std::unique_ptr<Resident>> expected;
  std::mt19937_64 random(7);
  size_t most = 0;
  for (int step = 0; step < 40000; ++step) {
    const uint64_t number = random() % 3000;
    const auto found = expected.find(number);
    ASSERT_EQ(index.find(identity(number)), found != expected.end() ? found->second.get() : nullptr);
    // More come than go, and then more go than come.
    const bool add = random() % 8 < (step < 20000 ? 5 : 3);
    if (found == expected.end() && add) {
      auto resident = std::make_unique<Resident>();
      resident->identity = identity(number);
      index.insert(*resident);
      expected.emplace(number, std::move(resident));
    } else if (found != expected.end() && !add) {
      index.erase(identity(number));
      expected.erase(found);
    }
    ASSERT_EQ(index.size(), expected.size());
    most = std::max(most, expected.size());
  }
  EXPECT_GT(most, 1024U) << "it had to grow";
  for (const auto& [number, resident] : expected) EXPECT_EQ(index.find(identity(number)), resident.get());
}

}  // namespace
}  // namespace ebbtide::test
