#include <ebbtide/pinned_pool/page.h>
#include <ebbtide/pinned_pool/slab.h>

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "tests/pinned_pool/fake_registrar.h"

namespace ebbtide::pinned_pool {
namespace {

constexpr size_t kBytes = 4 * kHugePage;

bool mapped(const std::byte* data) {
  unsigned char there = 0;
  return ::mincore(const_cast<std::byte*>(data), 1, &there) == 0;
}

TEST(Slab, IsAlignedPresentAndUnmappedAtItsEnd) {
  const std::byte* data = nullptr;
  {
    auto slab = Slab::make({.bytes = kBytes});
    ASSERT_TRUE(slab) << slab.failure().message;
    data = slab.value().data();
    EXPECT_EQ(slab.value().bytes(), kBytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(data) % kHugePage, 0u);
    std::vector<unsigned char> present(kBytes / page_bytes());
    ASSERT_EQ(::mincore(slab.value().data(), kBytes, present.data()), 0);
    EXPECT_TRUE(std::all_of(present.begin(), present.end(), [](unsigned char page) { return (page & 1) != 0; }));
    std::memset(slab.value().data(), 0x5a, kBytes);
    EXPECT_FALSE(slab.value().pageable_because().empty());
    EXPECT_TRUE(slab.value().unbound_because().empty()) << "nobody asked to bind it";
  }
  EXPECT_FALSE(mapped(data));
}

TEST(Slab, PinsOnceAndUnpinsOnceThoughMoved) {
  test::FakeRegistrar registrar;
  {
    auto made = Slab::make({.bytes = kBytes, .registrar = &registrar});
    ASSERT_TRUE(made);
    Slab slab = std::move(made).value();
    const Slab moved = std::move(slab);
    EXPECT_TRUE(moved.pageable_because().empty());
    EXPECT_EQ(registrar.pinned(), 1u);
    EXPECT_TRUE(registrar.covers(moved.data(), kBytes));
  }
  EXPECT_EQ(registrar.pinned(), 0u);
  EXPECT_EQ(registrar.unpins(), 1);
  EXPECT_EQ(registrar.mismatches(), 0);
}

TEST(Slab, RefusedPinLeavesPageableMemoryThatSaysWhy) {
  test::FakeRegistrar registrar;
  registrar.refuse(true);
  {
    auto slab = Slab::make({.bytes = kBytes, .registrar = &registrar});
    ASSERT_TRUE(slab);
    EXPECT_EQ(slab.value().pageable_because(), "the fake device is out of registrations");
    std::memset(slab.value().data(), 1, kBytes);
  }
  EXPECT_EQ(registrar.unpins(), 0);
}

TEST(Slab, RefusedBindLeavesMemoryThatSaysWhy) {
  auto topology = Topology::from_xml(EBBTIDE_TEST_DATA "/dual_socket_gpus.xml");
  ASSERT_TRUE(topology);
  auto slab = Slab::make({.bytes = kHugePage, .topology = &topology.value(), .node = NumaNode{1}});
  ASSERT_TRUE(slab);
  EXPECT_NE(slab.value().unbound_because().find("NUMA node 1"), std::string::npos) << slab.value().unbound_because();
}

TEST(Slab, CancelledWhilePrefaulting) {
  const std::atomic<bool> cancelled = true;
  auto slab = Slab::make({.bytes = kBytes, .cancelled = &cancelled});
  ASSERT_FALSE(slab);
  EXPECT_EQ(slab.failure().code, FailureCode::kCancelled);
}

TEST(Slab, NoAddressSpaceIsAFailure) {
  auto slab = Slab::make({.bytes = size_t{1} << 60});
  ASSERT_FALSE(slab);
  EXPECT_EQ(slab.failure().code, FailureCode::kOverCapacity);
}

}  // namespace
}  // namespace ebbtide::pinned_pool
