// The tests of accelerators, tested: a store that forgets an order is caught.
#include <gmock/gmock.h>
#include <tests/hooks/accelerator_support.h>

#include <cstdint>
#include <string>

namespace ebbtide::test {
namespace {

/// Orders that the store makes, each left out: the race detector must see it in every schedule.
class AcceleratorMutantTest : public testing::TestWithParam<MutantDevice::Mutation> {};

TEST_P(AcceleratorMutantTest, IsCaughtInEverySchedule) {
  for (uint64_t seed = 0; seed < seeds(20); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Machine machine(to_host(Bytes(0)), {.seed = seed}, GetParam());
    (void)train("transformer", &machine.store());
    EXPECT_THAT(machine.sim().complaints(), testing::Contains(testing::HasSubstr("race: ")));
  }
}

const char* name_of(MutantDevice::Mutation mutation) {
  switch (mutation) {
    case MutantDevice::Mutation::kNone:
      return "None";
    case MutantDevice::Mutation::kComputeDoesNotWait:
      return "ComputeDoesNotWait";
    case MutantDevice::Mutation::kCopyOutDoesNotWait:
      return "CopyOutDoesNotWait";
    case MutantDevice::Mutation::kCopyInDoesNotWait:
      return "CopyInDoesNotWait";
    case MutantDevice::Mutation::kPassedTooEarly:
      return "PassedTooEarly";
  }
  return "";
}

INSTANTIATE_TEST_SUITE_P(Orders, AcceleratorMutantTest,
                         testing::Values(MutantDevice::Mutation::kComputeDoesNotWait,
                                         MutantDevice::Mutation::kCopyOutDoesNotWait,
                                         MutantDevice::Mutation::kCopyInDoesNotWait,
                                         MutantDevice::Mutation::kPassedTooEarly),
                         [](const auto& info) { return std::string(name_of(info.param)); });

}  // namespace
}  // namespace ebbtide::test
