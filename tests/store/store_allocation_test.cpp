// After warm-up, a tensor that leaves an accelerator and comes back costs the store no call of the heap.
#include "tests/support/count_allocations.h"

#include <gtest/gtest.h>

#include <utility>

#include "tests/support/noop_training.h"

namespace ebbtide::test {
namespace {

/// In a forward and a backward of one pass.
std::pair<int64_t, int64_t> allocations_of_a_pass(size_t tensors) {
  NoopTraining training(tensors);
  const int64_t cold = allocations;
  training.forward();
  EXPECT_GT(allocations - cold, static_cast<int64_t>(tensors)) << "the counter counts";
  training.backward();
  training.forward();
  training.backward();
  const int64_t before = allocations;
  training.forward();
  const int64_t between = allocations;
  training.backward();
  const int64_t after = allocations;
  EXPECT_EQ(training.stats().offloaded.tensors, 3 * static_cast<int64_t>(tensors));
  EXPECT_EQ(training.stats().h2d.bytes, NoopTraining::kSize * 3 * static_cast<int64_t>(tensors));
  return {between - before, after - between};
}

TEST(StoreAllocation, NoneForATensorAfterWarmUp) {
  const auto few = allocations_of_a_pass(64),
             many = allocations_of_a_pass(192);  // as many of each are timed by the lanes
  EXPECT_EQ(few, many) << "what is left is the pass's own, and not its tensors'";
  EXPECT_LE(many.first, 5);
  EXPECT_LE(many.second, 2);
}

}  // namespace
}  // namespace ebbtide::test
