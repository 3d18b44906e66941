#include <ebbtide/nvme/checksum.h>
#include <gtest/gtest.h>

#include <vector>

namespace ebbtide::nvme {
namespace {

uint64_t sum(const ChunkIdentity& identity, const std::vector<std::byte>& bytes) {
  const HashedRun run{bytes.data(), bytes.size()};
  return checksum(identity, {&run, 1});
}

std::vector<std::byte> some_bytes(size_t count) {
  std::vector<std::byte> bytes(count);
  for (size_t i = 0; i < count; ++i) bytes[i] = static_cast<std::byte>(i * 131 + i / 251);
  return bytes;
}

TEST(Checksum, DoesNotDependOnHowMemoryIsCutUp) {
  const auto bytes = some_bytes(100'000);
  for (size_t cut : {size_t{1}, size_t{512}, size_t{65'536}, bytes.size() - 1}) {
    const HashedRun runs[] = {{bytes.data(), cut}, {bytes.data() + cut, bytes.size() - cut}};
    EXPECT_EQ(checksum({1, 2, 3}, runs), sum({1, 2, 3}, bytes)) << cut;
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

TEST(Checksum, IsTheSameOnEveryProcessor) {
#ifdef __x86_64__
  if (!has_avx2()) GTEST_SKIP() << "this processor has no AVX2";
  const auto bytes = some_bytes(70'000);
  for (const size_t count :
       {size_t{0}, size_t{1}, size_t{16}, size_t{240}, size_t{241}, size_t{1024}, size_t{1025}, size_t{70'000}}) {
    const HashedRun whole{bytes.data(), count};
    const HashedRun cut[] = {{bytes.data(), count / 3}, {bytes.data() + count / 3, count - count / 3}};
    const uint64_t right = xxh3_portable(&whole, 1, 5);
    EXPECT_EQ(xxh3_avx2(&whole, 1, 5), right) << count;
    EXPECT_EQ(xxh3_avx2(cut, 2, 5), right) << count;
  }
#else
  GTEST_SKIP() << "one way for all processors of this kind";
#endif
}

}  // namespace
}  // namespace ebbtide::nvme
