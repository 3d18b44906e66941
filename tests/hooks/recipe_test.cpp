// Ops that are run again instead of stored: each row of the table, and what must not be trusted.
#include <ebbtide/hooks/offload_scope.h>
#include <ebbtide/hooks/recipe_table.h>
#include <ebbtide/store/store_core.h>

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <tests/hooks/support.h>
#include <torch/csrc/autograd/generated/Functions.h>

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace ebbtide::test {
namespace {

/// What the examples read. All of them are records by then, but for the two small ones.
struct Inputs {
  at::Tensor x, z;          // 64 x 64
  at::Tensor weight, bias;  // 64, leaves
};
struct Example {
  std::function<at::Tensor(const Inputs&)> run;
  const char* recomputed = nullptr;  ///< the op of the tensor saved, where it is not the row's
};

const std::multimap<std::string, Example>& cheap_examples() {
  static const std::multimap<std::string, Example> all = {
      {"gelu", {[](const Inputs& in) { return at::gelu(in.x); }}},
      {"gelu", {[](const Inputs& in) { return at::gelu(in.x, "tanh"); }}},
      {"silu", {[](const Inputs& in) { return at::silu(in.x); }}},
      {"mish", {[](const Inputs& in) { return at::mish(in.x); }}},
      {"hardswish", {[](const Inputs& in) { return at::hardswish(in.x); }}},
      {"hardsigmoid", {[](const Inputs& in) { return at::hardsigmoid(in.x); }}},
      {"logsigmoid", {[](const Inputs& in) { return at::log_sigmoid(in.x); }}},
      {"hardtanh", {[](const Inputs& in) { return at::hardtanh(in.x, -0.5, 0.25); }}},
      {"softplus", {[](const Inputs& in) { return at::softplus(in.x, 2, 3); }}},
      {"leaky_relu", {[](const Inputs& in) { return at::leaky_relu(in.x, 0.3); }}},
      {"elu", {[](const Inputs& in) { return at::elu(in.x, 1.5, 1.1); }}},
      {"relu", {[](const Inputs& in) { return at::relu(in.x); }}},
      {"sigmoid", {[](const Inputs& in) { return at::sigmoid(in.x); }}},
      {"tanh", {[](const Inputs& in) { return at::tanh(in.x); }}},
      {"exp", {[](const Inputs& in) { return at::exp(in.x); }}},
      {"rsqrt", {[](const Inputs& in) { return at::rsqrt(in.x * in.x); }}},
      {"neg", {[](const Inputs& in) { return at::neg(in.x); }}},
      {"softmax", {[](const Inputs& in) { return at::softmax(in.x, 1); }}},
      {"log_softmax", {[](const Inputs& in) { return at::log_softmax(in.x, 0); }}},
      {"pow", {[](const Inputs& in) { return at::pow(in.x, 3); }}},
      {"mul", {[](const Inputs& in) { return in.x * in.z; }}},
      {"div", {[](const Inputs& in) { return in.x / (in.weight + 3); }}},
      {"mul by a number", {[](const Inputs& in) { return in.x * 0.7; }}},
      {"div by a number", {[](const Inputs& in) { return in.x / 0.7; }}},
      {"add", {[](const Inputs& in) { return at::add(in.x, in.z, 0.5); }}},
      {"sub", {[](const Inputs& in) { return at::sub(in.x, in.bias, 3); }}},
      {"cast", {[](const Inputs& in) { return in.x.to(at::kDouble); }}},
      {"clone", {[](const Inputs& in) { return in.x.clone(); }}},
      {"layer_norm", {[](const Inputs& in) { return at::layer_norm(in.x, {64}, in.weight, in.bias, 1e-6); }}},
      {"group_norm", {[](const Inputs& in) {
         return at::group_norm(in.x.view({1, 64, 64}), 8, in.weight, in.bias);
       }}},
      {"dropout", {[](const Inputs& in) { return std::get<0>(at::native_dropout(in.x, 0.3, true)); }}},
      {"view",
       {[](const Inputs& in) {
          return in.x.view({32, 128}).transpose(0, 1).contiguous();
        },
        "clone"}},
      {"transpose", {[](const Inputs& in) { return in.x.transpose(0, 1).contiguous(); }, "clone"}},
      {"permute",
       {[](const Inputs& in) {
          return in.x.permute({1, 0}).contiguous();
        },
        "clone"}},
      {"t", {[](const Inputs& in) { return in.x.t().contiguous(); }, "clone"}},
      {"unsqueeze", {[](const Inputs& in) { return in.x.unsqueeze(1).transpose(0, 2).contiguous(); }, "clone"}},
      {"expand",
       {[](const Inputs& in) {
          return in.x.unsqueeze(0).expand({2, 64, 64}).contiguous();
        },
        "clone"}},
  };
  return all;
}

at::Tensor unsafe_view(const Inputs& in) {
  return at::_unsafe_view(in.x.neg(), {32, 128});
}
at::Tensor bmm(const Inputs& in) {
  return at::bmm(in.x.view({2, 32, 64}), in.z.view({2, 64, 32}));
}
at::Tensor baddbmm(const Inputs& in) {
  return at::baddbmm(in.bias, in.x.view({1, 64, 64}), in.z.view({1, 64, 64}), 0.5, 2);
}
at::Tensor convolution(const Inputs& in) {
  return at::conv2d(in.x.view({1, 4, 32, 32}), in.z.view({16, 4, 8, 8}));
}
at::Tensor convolution_with_bias(const Inputs& in) {
  return at::conv2d(in.x.view({1, 4, 32, 32}), in.z.view({64, 4, 4, 4}), in.bias, at::IntArrayRef({1, 1}), {1, 1});
}

const std::multimap<std::string, Example>& examples() {
  static const std::multimap<std::string, Example> all = [] {
    std::multimap<std::string, Example> costly = {
        {"unsafe_view", {unsafe_view, "neg"}},
        {"mm", {[](const Inputs& in) { return at::mm(in.x, in.z); }}},
        {"mm", {[](const Inputs& in) { return at::mm(in.x.t(), in.z); }}},
        {"addmm", {[](const Inputs& in) { return at::addmm(in.bias, in.x, in.z, 1, 0.5); }}},
        {"bmm", {bmm}},
        {"baddbmm", {baddbmm}},
        {"convolution", {convolution}},
        {"convolution", {convolution_with_bias}}};
    costly.insert(cheap_examples().begin(), cheap_examples().end());
    return costly;
  }();
  return all;
}

/// The forward of an example: what it makes is saved by a sine.
at::Tensor forward(const Example& example, const Inputs& leaves) {
  Inputs in = leaves;
  in.x = leaves.x * 2;
  in.z = leaves.z * 3;
  const at::Tensor saved = in.x.cos() + in.z.cos();
  const at::Tensor y = example.run(in);
  return y.sin().sum() + saved.sum();
}

std::vector<at::Tensor> gradients(const Example& example, at::ScalarType dtype, Store* store) {
  at::manual_seed(3);
  const auto make = [&](int seed, int64_t size) { return leaf(seed, size).detach().to(dtype).requires_grad_(true); };
  const Inputs leaves{make(1, 4096), make(2, 4096), make(3, 64), make(4, 64)};
  Inputs shaped = leaves;
  const at::Tensor x = leaves.x, z = leaves.z;
  at::Tensor loss;
  {
    std::optional<OffloadScope> scope;
    if (store != nullptr) scope.emplace(*store);
    shaped.x = x.view({64, 64});
    shaped.z = z.view({64, 64});
    loss = forward(example, shaped);
  }
  return torch::autograd::grad({loss}, {x, z, leaves.weight, leaves.bias}, {}, {}, false, /*allow_unused=*/true);
}

bool same(const std::vector<at::Tensor>& a, const std::vector<at::Tensor>& b) {
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i].defined() != b[i].defined()) return false;
    if (a[i].defined() && !same_bits(a[i], b[i])) return false;
  }
  return a.size() == b.size();
}

template <class Node>
concept KeepsEps = requires(Node node) {
  node.eps;
};

class RecipeRowTest : public testing::TestWithParam<std::string> {};

void expect_run_again(const std::string& row, const Example& example, at::ScalarType dtype) {
  const Folder folder;
  const auto reference = gradients(example, dtype, nullptr);
  Store store(spilling(folder));
  store.core()->follow_plans(false);  // which may find other ways cheaper
  store.core()->use_costly_recipes(true);
  for (int pass = 0; pass < 2; ++pass)
    EXPECT_TRUE(same(gradients(example, dtype, &store), reference)) << dtype << ", pass " << pass;
  const Stats stats = store.stats();
  // Many values of eps give the same bf16 statistics: norms whose nodes do not tell theirs are stored.
  const bool needs_statistics =
      row == "layer_norm" || (row == "group_norm" && !KeepsEps<torch::autograd::generated::NativeGroupNormBackward0>);
  if (!needs_statistics || dtype == at::kFloat) {
    const std::string op = example.recomputed != nullptr ? example.recomputed : row;
    EXPECT_GE(stats.recomputed_ops.contains(op) ? stats.recomputed_ops.at(op).tensors : 0, 2) << dtype << "\n"
                                                                                              << store.report();
    EXPECT_GT(stats.recompute_s, 0);
  }
  EXPECT_EQ(stats.unequal_redos.size(), 0u) << store.report();
  expect_all_is_over(store);
}

TEST_P(RecipeRowTest, IsRunAgainToTheLastBit) {
  const auto [first, last] = examples().equal_range(GetParam());
  ASSERT_NE(first, last) << "a row without an example";
  for (auto example = first; example != last; ++example)
    for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) expect_run_again(GetParam(), example->second, dtype);
}

std::vector<std::string> row_names() {
  std::vector<std::string> names;
  for (const RecipeRow& row : recipe_rows()) names.emplace_back(row.name);
  return names;
}

INSTANTIATE_TEST_SUITE_P(Table, RecipeRowTest, testing::ValuesIn(row_names()), [](const auto& info) {
  std::string name = info.param;
  std::ranges::replace(name, ' ', '_');
  return name;
});

}  // namespace
}  // namespace ebbtide::test
