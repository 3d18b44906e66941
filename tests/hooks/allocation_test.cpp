// After warm-up, a tensor that stays where it is costs the hooks and the store no call of the heap.
#include "tests/support/count_allocations.h"

#include <ebbtide/hooks/offload_scope.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <array>
#include <optional>

#include "tests/hooks/support.h"

namespace ebbtide::test {
namespace {

struct Calls {
  int64_t forward = 0;
  int64_t backward = 0;
};

/// Of operator new, torch's among them, in a chain of as many ops, each of which saves its input.
Calls calls_in_a_chain(int64_t ops, Store* store, int64_t floats) {
  const at::Tensor x = leaf(0, floats);
  Calls calls;
  for (int pass = 0; pass < 3; ++pass) {  // the last one counts
    const int64_t before = allocations;
    at::Tensor y = x;
    {
      std::optional<OffloadScope> scope;
      if (store != nullptr) scope.emplace(*store);
      for (int64_t op = 0; op < ops; ++op) y = y.sin();
      if (scope) scope->leave();
    }
    const int64_t turned = allocations;
    torch::autograd::backward({y.sum()}, {});
    y.reset();
    calls = {turned - before, allocations - turned};
  }
  return calls;
}

/// What `more` ops add to those before, each.
Calls calls_an_op(Store* store, int64_t floats) {
  constexpr int64_t kFew = 100, kMore = 400;
  const Calls few = calls_in_a_chain(kFew, store, floats), many = calls_in_a_chain(kFew + kMore, store, floats);
  EXPECT_NEAR(static_cast<double>((many.forward - few.forward) % kMore), 0, 8) << "a whole number an op";
  return {(many.forward - few.forward) / kMore, (many.backward - few.backward) / kMore};
}

TEST(HooksAllocation, NoneForATensorThatIsKept) {
  Store store(keeping());
  const Calls plain = calls_an_op(nullptr, kFloats), kept = calls_an_op(&store, kFloats);
  EXPECT_EQ(store.stats().passed_through.tensors, 6) << "the leaf, in each chain";
  const Calls passed_through = calls_an_op(&store, 8);
  ASSERT_GT(plain.forward, 0) << "torch's own calls are counted";
  EXPECT_EQ(kept.forward, plain.forward);
  // What torch does with the tensor that any hook returns is there when one is passed through. Two calls more make the
  // tensor that is handed out: itself, and the version counter that its constructor gives it.
  EXPECT_LE(kept.backward, passed_through.backward + 2);
  expect_all_is_over(store);
}

TEST(HooksAllocation, ATensorThatIsPassedThroughCostsItsCopyWithoutHistory) {
  Store store(keeping());
  const Calls plain = calls_an_op(nullptr, 8), ours = calls_an_op(&store, 8);
  EXPECT_LE(ours.forward, plain.forward + 2);
  expect_all_is_over(store);
}

}  // namespace
}  // namespace ebbtide::test
