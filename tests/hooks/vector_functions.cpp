// Linked into each test that compares what torch computes on the CPU.
#include <tests/support/vector_functions.h>

#include <gtest/gtest.h>

namespace ebbtide::test {
namespace {

struct VectorFunctions : testing::Environment {
  void SetUp() override { settle_vector_functions(); }
};

[[maybe_unused]] const auto* const settled = testing::AddGlobalTestEnvironment(new VectorFunctions);

}  // namespace
}  // namespace ebbtide::test
