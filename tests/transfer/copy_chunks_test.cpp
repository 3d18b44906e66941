#include <ebbtide/transfer/copy_chunks.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <utility>
#include <vector>

namespace ebbtide {
namespace {

std::vector<size_t> sizes(const CopyChunks& chunks) {
  std::vector<size_t> sizes;
  for (const CopyChunk& chunk : chunks) sizes.push_back(chunk.bytes);
  EXPECT_EQ(sizes.size(), chunks.size());
  return sizes;
}
CopyChunks of(size_t count) {
  CopyChunks chunks;
  for (size_t i = 1; i <= count; ++i) chunks.push_back({nullptr, nullptr, i});
  return chunks;
}

TEST(CopyChunks, HoldsThemInOrder) {
  EXPECT_THAT(sizes(of(0)), testing::IsEmpty());
  EXPECT_THAT(sizes(of(1)), testing::ElementsAre(1));
  EXPECT_THAT(sizes(of(3)), testing::ElementsAre(1, 2, 3));
  EXPECT_EQ(of(3)[2].bytes, 3u);
}

TEST(CopyChunks, ShrinksFromAnySizeToAny) {
  for (size_t from = 0; from <= 4; ++from) {
    for (size_t to = 0; to <= from; ++to) {
      CopyChunks chunks = of(from);
      chunks.shrink(to);
      EXPECT_EQ(sizes(chunks), sizes(of(to))) << from << " to " << to;
      chunks.push_back({nullptr, nullptr, to + 1});
      EXPECT_EQ(sizes(chunks), sizes(of(to + 1))) << "and grows again";
    }
  }
}

TEST(CopyChunks, MovedFromItIsEmpty) {
  for (size_t count = 0; count <= 3; ++count) {
    CopyChunks from = of(count), to = of(2);
    to = std::move(from);
    EXPECT_EQ(sizes(to), sizes(of(count)));
    EXPECT_EQ(from.size(), 0u);  // NOLINT(bugprone-use-after-move)
    from.push_back({nullptr, nullptr, 1});
    EXPECT_EQ(sizes(from), sizes(of(1)));
    EXPECT_EQ(sizes(CopyChunks(std::move(to))), sizes(of(count)));
  }
}

}  // namespace
}  // namespace ebbtide
