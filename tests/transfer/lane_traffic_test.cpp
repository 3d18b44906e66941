#include "tests/transfer/lane_traffic.h"

#include <gtest/gtest.h>

#include <string>

namespace ebbtide::test {
namespace {

template <class Rig>
void run_seeds(uint64_t seeds, int rounds) {
  for (uint64_t seed = 1; seed <= seeds && !testing::Test::HasFailure(); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Rig rig(ChaosOptions{.seed = seed});
    LaneTraffic<Rig>(rig, seed).run(rounds);
    rig.expect_clean();
  }
}

TEST(LaneTraffic, IsRightAndCleanOnAPretendDevice) {
  run_seeds<ChaosRig>(20, 100);
}

TEST(LaneTraffic, IsRightAndCleanThroughCudaDevice) {
  run_seeds<FakeCudaRig>(20, 100);
}

}  // namespace
}  // namespace ebbtide::test
