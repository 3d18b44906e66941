#include "tests/transfer/device_contract.h"

#include <type_traits>

#include "tests/support/device_rig.h"
#include "tests/transfer/cuda_contract.h"

namespace ebbtide::test {
namespace {

struct RigName {
  template <class Rig>
  static std::string GetName(int) {
    return std::is_same_v<Rig, ChaosRig> ? "Chaos" : std::is_same_v<Rig, FakeCudaRig> ? "CudaOnFake" : "Host";
  }
};

}  // namespace

using Rigs = testing::Types<ChaosRig, FakeCudaRig, HostRig>;
INSTANTIATE_TYPED_TEST_SUITE_P(All, DeviceContract, Rigs, RigName);
INSTANTIATE_TYPED_TEST_SUITE_P(OnFake, CudaContract, testing::Types<FakeCudaRig>);

}  // namespace ebbtide::test
