// Whole models: whatever the budget and the tier, the gradients are those of a run without the store, to the last bit.
#include <ebbtide/ebbtide.h>

#include <gmock/gmock.h>
#include <tests/hooks/models.h>
#include <tests/hooks/support.h>

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace ebbtide::test {
namespace {

/// Losses, gradients and buffers of a few steps of SGD, the forward under the store if there is one.
std::vector<at::Tensor> train(const std::string& name, Store* store) {
  constexpr int kSteps = 2;
  const Subject model = build(name);
  if (store != nullptr) store->attach(*model.module);
  torch::manual_seed(2);
  std::vector<at::Tensor> seen;
  for (int step = 0; step < kSteps; ++step) {
    model.module->zero_grad();
    at::Tensor loss;
    {
      std::optional<OffloadScope> scope;
      if (store != nullptr) scope.emplace(*store);
      loss = model.forward(model.input).pow(2).mean();
    }
    loss.backward();
    seen.push_back(loss.detach().clone());
    const torch::NoGradGuard no_grad;
    for (const at::Tensor& parameter : model.module->parameters()) {
      seen.push_back(parameter.grad().clone());
      parameter.sub_(parameter.grad(), 0.01);
    }
  }
  for (const at::Tensor& buffer : model.module->buffers()) seen.push_back(buffer.clone());
  return seen;
}

class BitwiseTest : public testing::TestWithParam<const char*> {};

TEST_P(BitwiseTest, GradientsAreThoseOfPlain) {
  const std::vector<at::Tensor> reference = train(GetParam(), nullptr);
  ASSERT_TRUE(same_bits(train(GetParam(), nullptr), reference)) << "two plain runs differ: there is nothing to compare";

  Store measured(keeping());
  EXPECT_TRUE(same_bits(train(GetParam(), &measured), reference)) << "unlimited";
  const Stats unlimited = measured.stats();
  expect_all_is_over(measured);
  EXPECT_EQ(unlimited.passes, 2);
  EXPECT_GT(unlimited.saved.tensors, 0);
  EXPECT_EQ(unlimited.spilled.tensors, 0);

  const Folder folder;
  for (const bool spill : {false, true}) {
    for (const int percent : {0, 10, 50}) {
      SCOPED_TRACE(std::to_string(percent) + (spill ? "% and a folder" : "% and on_full=keep"));
      const Bytes budget(unlimited.saved.bytes.count() / 2 * percent / 100);  // of one of its two passes
      Options options = spill ? spilling(folder, budget) : keeping(budget);
      if (!spill) options.on_full = OnFull::kKeep;
      Store store(options);
      store.on_warning([](const std::string&) {});
      EXPECT_TRUE(same_bits(train(GetParam(), &store), reference));
      const Stats stats = store.stats();
      expect_all_is_over(store);
      EXPECT_EQ(stats.passes, 2);
      EXPECT_EQ(stats.packed.tensors, unlimited.packed.tensors);
      EXPECT_EQ(stats.passed_through.tensors, unlimited.passed_through.tensors);
      if (spill) {
        EXPECT_GT(stats.spilled.tensors + stats.recomputed.tensors, 0);
        if (percent == 0) EXPECT_GT(stats.disk_read.bytes, Bytes(0));
        EXPECT_EQ(stats.device.budget_bytes, budget);
      } else {
        EXPECT_EQ(stats.kept.tensors + stats.recomputed.tensors, stats.saved.tensors);
        EXPECT_EQ(stats.disk_write.bytes, Bytes(0));
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Models, BitwiseTest, testing::Values("mlp", "conv", "lstm", "transformer", "custom_function"),
                         [](const auto& info) { return std::string(info.param); });

struct WithBuffer : nn::Module {
  at::Tensor weight = register_parameter("weight", torch::randn({64, 64}));
  at::Tensor mask = register_buffer("mask", torch::ones({64, 64}));
};

TEST(AttachTest, ParametersAndBuffersNeverMoveNorAnyViewOfThem) {
  Store store(keeping());
  const WithBuffer net;
  const at::Tensor x = leaf().view({64, 64});
  const auto saved_with = [&](const at::Tensor& factor) {
    const int64_t before = store.stats().saved.tensors;
    OffloadScope scope(store);
    (x * 2).mul(factor);
    return store.stats().saved.tensors - before;
  };
  const int64_t without = saved_with(at::ones({1, 64}));  // small: passes through
  const std::vector<at::Tensor> of_net = {net.mask, net.mask.select(0, 3).expand({64, 64}), net.weight.detach(),
                                          net.weight.detach().transpose(0, 1)};
  for (const at::Tensor& factor : of_net) EXPECT_EQ(saved_with(factor), without + 1);
  store.attach(net);
  for (const at::Tensor& factor : of_net) EXPECT_EQ(saved_with(factor), without);
  EXPECT_EQ(store.stats().passed_through_reasons["parameter or buffer of an attached model"].tensors, 4);
}

TEST(AttachTest, KnowsTheModulesWithinAModule) {
  Store store(keeping());
  const nn::Sequential net(nn::Linear(64, 64), nn::BatchNorm1d(4096));
  store.attach(*net);
  const at::Tensor x = leaf().detach().view({64, 64}).clone().requires_grad_(true);
  const at::Tensor running_mean = net->children()[1]->buffers()[0].view({64, 64});
  {
    OffloadScope scope(store);
    (x * 2).mul(running_mean);
  }
  EXPECT_EQ(store.stats().passed_through_reasons["parameter or buffer of an attached model"].tensors, 1);
}

}  // namespace
}  // namespace ebbtide::test
