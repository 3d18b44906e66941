// After warm-up, a tensor that leaves an accelerator and comes back costs the store no call of the heap.
#include "tests/support/count_allocations.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <utility>

#include "tests/support/noop_training.h"

namespace ebbtide::test {
namespace {

/// In a forward and a backward of one pass, of those that nothing is learned from.
std::pair<int64_t, int64_t> allocations_of_a_pass(size_t tensors) {
  NoopTraining training(tensors);
  const int64_t cold = allocations;
  training.forward();
  EXPECT_GT(allocations - cold, static_cast<int64_t>(tensors)) << "the counter counts";
  training.backward();
  std::pair<int64_t, int64_t> least{tensors, tensors};
  constexpr int kMore = 7;
  for (int pass = 0; pass < kMore; ++pass) {
    const int64_t before = allocations;
    training.forward();
    const int64_t between = allocations;
    training.backward();
    least = std::min(least, {between - before, allocations - between});
  }
  EXPECT_EQ(training.stats().offloaded.tensors, (1 + kMore) * static_cast<int64_t>(tensors));
  EXPECT_EQ(training.stats().h2d.bytes, NoopTraining::kSize * (1 + kMore) * static_cast<int64_t>(tensors));
  return least;
}

TEST(StoreAllocation, NoneForATensorAfterWarmUp) {
  const auto few = allocations_of_a_pass(64),
             many = allocations_of_a_pass(192);  // as many of each are timed by the lanes
  EXPECT_EQ(few, many) << "what is left is the pass's own, and not its tensors'";
  EXPECT_LE(many.first, 6);
  EXPECT_LE(many.second, 3);
}

}  // namespace
}  // namespace ebbtide::test
