// Masks, kept as a bit an element.
#include <ebbtide/hooks/offload_scope.h>
#include <ebbtide/hooks/two_values.h>
#include <ebbtide/store/store_core.h>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <limits>
#include <optional>
#include <vector>

#include "tests/hooks/support.h"

namespace ebbtide::test {
namespace {

at::Tensor again(const Step& step) {
  std::vector<at::Tensor> operands;
  for (const Operand& operand : step.operands) operands.push_back(operand.copy);
  return step.redo(operands);
}

TEST(TwoValues, AnyTwoOfAnySize) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (const at::ScalarType dtype :
       {at::kBool, at::kByte, at::kHalf, at::kBFloat16, at::kFloat, at::kLong, at::kDouble})
    for (const int64_t size : {1, 63, 64, 65, 4096, 300'001}) {
      at::Tensor mask = leaf(1, size).detach().gt(0.3).to(dtype);
      if (at::isFloatingType(dtype))
        mask = at::where(mask == 0, at::scalar_tensor(-0.0, dtype), at::scalar_tensor(nan, dtype));
      for (const at::Tensor& two : {mask, at::ones_like(mask), at::zeros_like(mask)}) {
        const std::optional<Step> step = as_bits(two);
        ASSERT_TRUE(step) << dtype << " " << size;
        EXPECT_LE(step->operands[0].copy.nbytes(), static_cast<size_t>(size / 8 + 8));
        EXPECT_TRUE(same_bits(again(*step), two)) << dtype << " " << size;
      }
    }
}

TEST(TwoValues, AThirdOneAnywhereIsSeen) {
  for (const int64_t at : {2, 63, 64, 65'000, 299'999}) {
    at::Tensor mask = leaf(1, 300'000).detach().gt(0.3).to(at::kFloat);
    mask[at] = 0.5;
    EXPECT_FALSE(as_bits(mask)) << at;
  }
  at::Tensor zeros = at::zeros({300'000});
  zeros[299'998] = 1;
  zeros[299'999] = -0.0;
  EXPECT_FALSE(as_bits(zeros)) << "equal as numbers, not as bits";
  EXPECT_FALSE(as_bits(at::ones({64}, at::kComplexDouble)));
}

at::Tensor dropped_out(const at::Tensor& x) {
  at::manual_seed(5);
  return at::dropout(x, 0.25, /*train=*/true);
}
at::Tensor masked(const at::Tensor& x) {
  return at::where(leaf(7, x.numel()).detach().view(x.sizes()).gt(0), x, x * 2);
}
/// What is saved is a view that does not fill the storage.
at::Tensor masked_by_rows(const at::Tensor& x) {
  const at::Tensor mask = leaf(7, x.numel()).detach().gt(0).view({256, 256});
  return x.view({256, 256}).narrow(0, 0, 200) * mask.narrow(0, 0, 200);
}

TEST(TwoValues, MasksOverBudgetAreKeptAsBits) {
  for (const auto& op : {dropped_out, masked, masked_by_rows}) {
    const Folder folder;
    const at::Tensor x = leaf(1, 1 << 16);
    const auto pass = [&](Store* store) {
      std::optional<OffloadScope> scope;
      if (store != nullptr) scope.emplace(*store);
      const at::Tensor loss = op(x).sum();
      scope.reset();
      return gradient_of(loss, x);
    };
    const at::Tensor reference = pass(nullptr);
    Store store(spilling(folder));
    store.core()->follow_plans(false);  // which may find other ways cheaper
    for (int i = 0; i < 6; ++i) EXPECT_TRUE(same_bits(pass(&store), reference)) << i;
    const Stats stats = store.stats();
    EXPECT_EQ(stats.recomputed_ops.contains("bits") ? stats.recomputed_ops.at("bits").tensors : 0, 6) << store.report();
    EXPECT_GT(stats.recipe_bytes_peak, Bytes(0));
    EXPECT_LE(stats.recipe_bytes_peak, Bytes((1 << 16) / 8));
    expect_all_is_over(store);
  }
}

}  // namespace
}  // namespace ebbtide::test
