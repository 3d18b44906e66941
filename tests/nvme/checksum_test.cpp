#include <ebbtide/nvme/checksum.h>
#include <gtest/gtest.h>

#include <vector>

namespace ebbtide::nvme {
namespace {

uint64_t sum(const ChunkIdentity& identity, const std::vector<std::byte>& bytes) {
  const std::span<const std::byte> part(bytes);
  return checksum(identity, {&part, 1});
}

std::vector<std::byte> some_bytes(size_t count) {
  std::vector<std::byte> bytes(count);
  for (size_t i = 0; i < count; ++i) bytes[i] = static_cast<std::byte>(i * 131 + i / 251);
  return bytes;
}

TEST(Checksum, DoesNotDependOnHowMemoryIsCutUp) {
  const auto bytes = some_bytes(100'000);
  const std::span<const std::byte> all(bytes);
  for (size_t cut : {size_t{1}, size_t{512}, size_t{65'536}, bytes.size() - 1}) {
    const std::span<const std::byte> parts[] = {all.first(cut), all.subspan(cut)};
    EXPECT_EQ(checksum({1, 2, 3}, parts), sum({1, 2, 3}, bytes)) << cut;
  }
}

TEST(Checksum, ChangesWithEveryBitAndEveryPartOfTheIdentity) {
  auto bytes = some_bytes(4096);
  const uint64_t right = sum({1, 2, 3}, bytes);
  EXPECT_NE(right, sum({9, 2, 3}, bytes));
  EXPECT_NE(right, sum({1, 9, 3}, bytes));
  EXPECT_NE(right, sum({1, 2, 9}, bytes));
  for (size_t i = 0; i < bytes.size(); i += 37) {
    bytes[i] ^= std::byte{1};
    EXPECT_NE(right, sum({1, 2, 3}, bytes)) << i;
    bytes[i] ^= std::byte{1};
  }
}

}  // namespace
}  // namespace ebbtide::nvme
