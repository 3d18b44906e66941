// On a real GPU, through CUDA's own driver: what the pretend ones promise. Skipped, with the reason, where there is none.
#include <ebbtide/transfer/cuda_device.h>

#include <gtest/gtest.h>

#include <string>

#include "tests/gpu/gpu_rig.h"
#include "tests/store/rig_training.h"
#include "tests/transfer/cuda_contract.h"
#include "tests/transfer/device_contract.h"
#include "tests/transfer/lane_traffic.h"

namespace ebbtide::test {

using GpuRigs = testing::Types<GpuRig>;
INSTANTIATE_TYPED_TEST_SUITE_P(Gpu, DeviceContract, GpuRigs);
INSTANTIATE_TYPED_TEST_SUITE_P(Gpu, CudaContract, GpuRigs);

namespace {

class GpuTest : public testing::Test {
 protected:
  void SetUp() override {
    if (const auto why = GpuRig::unavailable()) GTEST_SKIP() << *why;
  }
};

TEST_F(GpuTest, HasANameAndAPciAddress) {
  GpuRig rig;
  EXPECT_FALSE(rig.device().name().empty());
  // Domain (four digits or eight), bus, device and function: "0000:3b:00.0".
  const std::string pci = rig.device().pci_address();
  ASSERT_TRUE(pci.size() == 12 || pci.size() == 16) << pci;
  EXPECT_EQ(pci.find_first_not_of("0123456789abcdef:."), std::string::npos) << pci;
  EXPECT_EQ(pci[pci.size() - 8], ':') << pci;
  EXPECT_EQ(pci[pci.size() - 2], '.') << pci;
}

TEST_F(GpuTest, KernelsAgreeWithTheHost) {
  GpuRig rig;
  const StreamId compute = rig.make_stream("compute");
  constexpr size_t kBytes = 1 << 20;
  const auto memory = rig.allocate(kBytes, compute);
  const auto host = rig.host(kBytes);
  rig.write(compute, memory.get(), kBytes, 7);
  ASSERT_TRUE(rig.device().copy(host.get(), memory.get(), kBytes, Direction::kOut, compute));
  rig.check(compute, memory.get(), kBytes, 7);
  EXPECT_EQ(rig.wrong(), 0u);
  EXPECT_EQ(count_wrong(host.get(), kBytes, 7), 0u);
  rig.fill(compute, memory.get() + 8, 4, 0);
  rig.check(compute, memory.get(), kBytes, 7);
  EXPECT_EQ(rig.wrong(), 1u) << "and a wrong word is seen";
}

TEST_F(GpuTest, TrafficThroughBothLanesIsRight) {
  GpuRig rig;
  for (uint64_t seed = 1; seed <= 3; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    LaneTraffic<GpuRig>(rig, seed).run(400);
  }
}

class GpuTraining : public testing::TestWithParam<RigTrainingCase> {
 protected:
  void SetUp() override {
    if (const auto why = GpuRig::unavailable()) GTEST_SKIP() << *why;
  }
};

TEST_P(GpuTraining, IsRight) {
  GpuRig rig;
  run_rig_training(rig, GetParam());
  rig.expect_clean();
}

INSTANTIATE_TEST_SUITE_P(Each, GpuTraining, testing::ValuesIn(kRigTrainingCases),
                         [](const auto& each) { return std::string(each.param.name); });

}  // namespace
}  // namespace ebbtide::test
