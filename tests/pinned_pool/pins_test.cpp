#include <ebbtide/pinned_pool/pins.h>

#include <gtest/gtest.h>

#include <cstdint>
#include <utility>

#include "tests/pinned_pool/fake_registrar.h"

namespace ebbtide::pinned_pool {
namespace {

constexpr size_t kMiB = size_t{1} << 20;

std::byte* somewhere() {
  return reinterpret_cast<std::byte*>(uintptr_t{1} << 40);  // never touched
}

class PinsTest : public testing::Test {
 protected:
  ~PinsTest() override {
    EXPECT_EQ(registrar_.pinned(), 0u);
    EXPECT_EQ(registrar_.mismatches(), 0);
  }
  test::FakeRegistrar registrar_;
};

TEST_F(PinsTest, OneRegistrationWhereThatIsGranted) {
  const Pins pins = Pins::make(registrar_, somewhere(), 64 * kMiB);
  EXPECT_EQ(registrar_.pins(), 1);
  EXPECT_EQ(registrar_.pinned(), 1u);
  EXPECT_EQ(pins.bytes(), 64 * kMiB);
  EXPECT_EQ(pins.refused_because(), "");
  EXPECT_EQ(pins.to_seam(0), 64 * kMiB);
  EXPECT_EQ(pins.to_seam(60 * kMiB), 4 * kMiB);
}

TEST_F(PinsTest, HalvesWhatIsTooMuchAtOnce) {
  registrar_.limit(10 * kMiB);
  const Pins pins = Pins::make(registrar_, somewhere(), 64 * kMiB);
  EXPECT_EQ(pins.bytes(), 64 * kMiB);
  EXPECT_EQ(pins.refused_because(), "");
  EXPECT_EQ(registrar_.pinned(), 8u);
  EXPECT_EQ(registrar_.pins(), 3 + 8);  // 64, 32 and 16 were tried once each
  EXPECT_EQ(pins.to_seam(5 * kMiB), 3 * kMiB);
  EXPECT_EQ(pins.to_seam(8 * kMiB), 8 * kMiB);
}

TEST_F(PinsTest, KeepsWhatFitsUnderATotal) {
  registrar_.limit(1024 * kMiB, 45 * kMiB);
  const Pins pins = Pins::make(registrar_, somewhere(), 64 * kMiB);
  EXPECT_EQ(pins.bytes(), 44 * kMiB);  // 32, 8 and 4; 1 MiB is not worth a registration
  EXPECT_EQ(registrar_.pinned(), 3u);
  EXPECT_EQ(pins.refused_because(), "the fake device is out of registrations");
  EXPECT_EQ(pins.to_seam(43 * kMiB), kMiB);
  EXPECT_GE(pins.to_seam(44 * kMiB), 20 * kMiB);
}

TEST_F(PinsTest, StopsAfterOneRefusalOfTheLeast) {
  registrar_.refuse(true);
  const Pins pins = Pins::make(registrar_, somewhere(), 1024 * kMiB);
  EXPECT_EQ(pins.bytes(), 0u);
  EXPECT_EQ(registrar_.pins(), 9);  // 1 GiB down to 4 MiB
  EXPECT_GE(pins.to_seam(0), 1024 * kMiB);
}

TEST_F(PinsTest, PiecesAreWholeHugePages) {
  registrar_.limit(7 * kMiB);
  const Pins pins = Pins::make(registrar_, somewhere(), 26 * kMiB);  // 26, 14, 8, 4
  EXPECT_EQ(pins.bytes(), 26 * kMiB);
  EXPECT_EQ(pins.to_seam(0), 4 * kMiB);
  EXPECT_EQ(pins.to_seam(24 * kMiB), 2 * kMiB);
  EXPECT_EQ(registrar_.pinned(), 7u);
}

TEST_F(PinsTest, UnpinsOnceThoughMoved) {
  registrar_.limit(4 * kMiB);
  Pins pins = Pins::make(registrar_, somewhere(), 8 * kMiB);
  Pins moved = std::move(pins);
  EXPECT_EQ(registrar_.unpins(), 0);
  pins = std::move(moved);
  EXPECT_EQ(pins.bytes(), 8 * kMiB);
  pins = Pins();
  EXPECT_EQ(registrar_.unpins(), 2);
}

}  // namespace
}  // namespace ebbtide::pinned_pool
