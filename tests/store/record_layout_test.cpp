#include <ebbtide/store/record.h>

#include <gtest/gtest.h>

namespace ebbtide {
namespace {

TEST(RecordLayout, MiddleIsAlignedAndNothingIsLost) {
  for (const size_t alignment : {1, 4, 512, 4096}) {
    for (const uintptr_t address : {0x10000u, 0x10040u, 0x101ffu, 0x10200u, 0x10fc0u}) {
      for (const int64_t size : {4096, 5000, 65536, 1000003}) {
        const auto layout = RecordLayout::of(reinterpret_cast<const std::byte*>(address), Bytes(size),
                                             {.memory = alignment, .length = alignment});
        EXPECT_EQ(layout.head + layout.middle + layout.tail, static_cast<size_t>(size));
        EXPECT_LT(layout.head, layout.modulus);
        EXPECT_LT(layout.tail, layout.modulus);
        EXPECT_EQ((address + layout.head) % alignment, 0u);
        EXPECT_EQ(layout.middle % alignment, 0u);
        EXPECT_EQ(address % 64, layout.remainder % 64) << "kernels choose their code path by it";
      }
    }
  }
}

TEST(RecordLayout, SmallerThanTheAlignmentIsAllEdges) {
  const auto layout =
      RecordLayout::of(reinterpret_cast<const std::byte*>(0x10040), Bytes(100), {.memory = 512, .length = 512});
  EXPECT_EQ(layout.head, 100u);
  EXPECT_EQ(layout.middle, 0u);
  EXPECT_EQ(layout.tail, 0u);
}

}  // namespace
}  // namespace ebbtide
