#include <ebbtide/pinned_pool/bytes.h>

#include <gtest/gtest.h>

namespace ebbtide {
namespace {

TEST(Bytes, ForPeople) {
  EXPECT_EQ(to_string(Bytes(0)), "0 B");
  EXPECT_EQ(to_string(Bytes(17)), "17 B");
  EXPECT_EQ(to_string(KiB(64)), "64 KiB");
  EXPECT_EQ(to_string(MiB(1.5)), "1.50 MiB");
  EXPECT_EQ(to_string(GiB(23.54)), "23.5 GiB");
  EXPECT_EQ(to_string(TiB(4096)), "4096 TiB");
  EXPECT_EQ(to_string(Bytes(0) - MiB(2)), "-2 MiB");
}

TEST(Bytes, Arithmetic) {
  EXPECT_EQ(KiB(3) + Bytes(1), Bytes(3073));
  EXPECT_EQ(MiB(1) / 4 * 3, KiB(768));
  EXPECT_LT(KiB(1023), MiB(1));
}

}  // namespace
}  // namespace ebbtide
