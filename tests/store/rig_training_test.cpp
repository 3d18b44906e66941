// What tests/gpu runs on a real device, on pretend ones: with a race detector, and on every machine.
#include "tests/store/rig_training.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/device_rig.h"

namespace ebbtide::test {
namespace {

class RigTrainingTest : public testing::TestWithParam<RigTrainingCase> {};

TEST_P(RigTrainingTest, IsRightThroughCudaDeviceOnAPretendDriver) {
  FakeCudaRig rig(ChaosOptions{.seed = 3});
  run_rig_training(rig, GetParam());
  EXPECT_THAT(rig.chaos().races(), testing::IsEmpty());
  EXPECT_THAT(rig.api().misuse(), testing::IsEmpty());
}

INSTANTIATE_TEST_SUITE_P(Each, RigTrainingTest, testing::ValuesIn(kRigTrainingCases),
                         [](const auto& each) { return std::string(each.param.name); });

}  // namespace
}  // namespace ebbtide::test
