#include <ebbtide/hooks/norm_eps.h>
#include <ebbtide/hooks/recipe_table.h>

#include <ATen/ops/_log_softmax.h>
#include <ATen/ops/_softmax.h>
#include <ATen/ops/_unsafe_view.h>
#include <ATen/ops/add.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/baddbmm.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/div.h>
#include <ATen/ops/elu.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/hardsigmoid.h>
#include <ATen/ops/hardswish.h>
#include <ATen/ops/hardtanh.h>
#include <ATen/ops/leaky_relu.h>
#include <ATen/ops/log_sigmoid.h>
#include <ATen/ops/mish.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/native_group_norm.h>
#include <ATen/ops/native_layer_norm.h>
#include <ATen/ops/neg.h>
#include <ATen/ops/pow.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/rsqrt.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/softplus.h>
#include <ATen/ops/sub.h>
#include <ATen/ops/tanh.h>
#include <torch/csrc/autograd/generated/Functions.h>

#include <array>
#include <typeindex>
#include <typeinfo>
#include <unordered_map>
#include <utility>
#include <vector>

namespace ebbtide {
namespace {

namespace gen = torch::autograd::generated;
using Values = std::span<const at::Tensor>;
using In = Ingredients;

struct TypedRow {
  RecipeRow row;
  const std::type_info* type;
};

/// `kTake` is a function of (NodeType&, Ingredients&).
template <class NodeType, auto kTake>
TypedRow row(const char* name) {
  RecipeRow made{.name = name};
  made.take = [](torch::autograd::Node& node, In& in) -> Redo { return kTake(static_cast<NodeType&>(node), in); };
  return {made, &typeid(NodeType)};
}
template <class NodeType, auto kTake>
TypedRow view(const char* name) {
  TypedRow typed = row<NodeType, kTake>(name);
  typed.row.is_view = true;
  return typed;
}
template <class NodeType, auto kTake>
TypedRow alias(const char* name) {
  TypedRow typed = row<NodeType, kTake>(name);
  typed.row.is_alias = true;
  return typed;
}
template <class NodeType, auto kTake>
TypedRow costly(const char* name) {
  TypedRow typed = row<NodeType, kTake>(name);
  typed.row.costly = true;
  return typed;
}

std::optional<at::Tensor> optional(const at::Tensor& tensor) {
  return tensor.defined() ? std::optional(tensor) : std::nullopt;
}

std::vector<int64_t> numbers(const std::vector<c10::SymInt>& symbolic, In& in) {
  std::vector<int64_t> plain;
  for (const c10::SymInt& number : symbolic) {
    if (number.is_symbolic()) {
      in.refuse();
      return {};
    }
    plain.push_back(in.scalar(number.expect_int()));
  }
  return plain;
}

/// A copy into the strides that the result had: they are in no node. A vector's are known (its copy is dense).
template <class NodeType>
Redo copied(NodeType&, In& in) {
  in.input(0);
  std::vector<int64_t> strides = {1};
  if (in.strides()) {
    strides = in.strides()->vec();
  } else if (in.sizes().size() != 1) {
    in.refuse();
    return {};
  }
  const auto options = at::TensorOptions(in.device()).dtype(in.dtype());
  return [options, sizes = in.sizes().vec(), strides = std::move(strides)](Values v) {
    return at::empty_strided(sizes, strides, options).copy_(v[0]);
  };
}

/// `op` of what the node saved as self_.
template <auto kOp, class NodeType>
Redo of_self(NodeType& node, In& in) {
  in.saved(node.self_, 0);
  return [](Values v) { return kOp(v[0]); };
}

/// `op` of an input that the node did not save: it saved its result.
template <auto kOp, class NodeType>
Redo of_input(NodeType&, In& in) {
  in.input(0);
  return [](Values v) { return kOp(v[0]); };
}

template <auto kOp, class NodeType>
Redo of_both_saved(NodeType& node, In& in) {
  in.saved(node.self_, 0);
  in.saved(node.other_, 1);
  return [](Values v) { return kOp(v[0], v[1]); };
}

template <auto kOp, class NodeType>
Redo of_both_inputs(NodeType& node, In& in) {
  in.input(0);
  in.input(1);
  const c10::Scalar alpha = in.scalar(node.alpha);
  return [alpha](Values v) { return kOp(v[0], v[1], alpha); };
}

template <auto kOp, class NodeType>
Redo of_input_and_scalar(NodeType& node, In& in) {
  in.input(0);
  return [other = in.scalar(node.other)](Values v) { return kOp(v[0], other); };
}

template <auto kOp, class NodeType>
Redo of_softmax(NodeType& node, In& in) {
  in.input(0);
  in.scalar(node.self_scalar_type);
  if (node.self_scalar_type != in.dtype()) in.refuse();
  return [dim = in.scalar(node.dim)](Values v) { return kOp(v[0], dim, false); };
}

/// Of a node whose input, weight and bias were taken; `shape` is of samples, channels, and the numbers in one.
template <class NodeType>
std::optional<double> eps_of_group_norm(NodeType& node, In& in, const std::vector<int64_t>& shape) {
  if constexpr (requires { node.eps; }) {
    return node.eps;
  } else {  // torch's newest versions need it for no gradient, so keep it nowhere
    const std::optional<double> told = in.layer_norm_eps(node.weight_);
    if (!in.device().is_cpu()) return told;
    in.saved_only(node.result2_);  // the reciprocal deviations
    if (told) return told;
    return group_norm_eps(in.value(0), in.value(1), in.value(2), in.value(3), shape[1], shape[2], node.group);
  }
}

/// `norm(eps)` once more; with the saved reciprocal deviations, if they were taken, as the fourth of its operands.
template <class Norm>
at::Tensor normed_again(Values v, double eps, Norm norm) {
  return v.size() > 3 ? with_deviations(v[3], eps, norm) : std::get<0>(norm(eps));
}

// clang-format off
const std::vector<TypedRow>& table() {
  static const auto* rows = new std::vector<TypedRow>{
      row<gen::GeluBackward0, [](gen::GeluBackward0& node, In& in) -> Redo {
        in.saved(node.self_, 0);
        return [kind = in.scalar(node.approximate)](Values v) { return at::gelu(v[0], kind); };
      }>("gelu"),
      row<gen::SiluBackward0, of_self<[](const at::Tensor& x) { return at::silu(x); }, gen::SiluBackward0>>("silu"),
      row<gen::MishBackward0, of_self<[](const at::Tensor& x) { return at::mish(x); }, gen::MishBackward0>>("mish"),
      row<gen::HardswishBackward0, of_self<[](const at::Tensor& x) { return at::hardswish(x); }, gen::HardswishBackward0>>("hardswish"),
      row<gen::HardsigmoidBackward0, of_self<[](const at::Tensor& x) { return at::hardsigmoid(x); }, gen::HardsigmoidBackward0>>("hardsigmoid"),
      row<gen::LogSigmoidBackward0, of_self<[](const at::Tensor& x) { return at::log_sigmoid(x); }, gen::LogSigmoidBackward0>>("logsigmoid"),
      row<gen::HardtanhBackward0, [](gen::HardtanhBackward0& node, In& in) -> Redo {
        in.saved(node.self_, 0);
        return [least = in.scalar(node.min_val), most = in.scalar(node.max_val)](Values v) { return at::hardtanh(v[0], least, most); };
      }>("hardtanh"),
      row<gen::SoftplusBackward0, [](gen::SoftplusBackward0& node, In& in) -> Redo {
        in.saved(node.self_, 0);
        return [beta = in.scalar(node.beta), threshold = in.scalar(node.threshold)](Values v) { return at::softplus(v[0], beta, threshold); };
      }>("softplus"),
      row<gen::LeakyReluBackward0, [](gen::LeakyReluBackward0& node, In& in) -> Redo {
        in.saved(node.self_, 0);
        return [slope = in.scalar(node.negative_slope)](Values v) { return at::leaky_relu(v[0], slope); };
      }>("leaky_relu"),
      row<gen::EluBackward0, [](gen::EluBackward0& node, In& in) -> Redo {
        in.saved(node.self_, 0);
        return [alpha = in.scalar(node.alpha), scale = in.scalar(node.scale), input = in.scalar(node.input_scale)](Values v) {
          return at::elu(v[0], alpha, scale, input);
        };
      }>("elu"),
      row<gen::ReluBackward0, of_input<[](const at::Tensor& x) { return at::relu(x); }, gen::ReluBackward0>>("relu"),
      row<gen::SigmoidBackward0, of_input<[](const at::Tensor& x) { return at::sigmoid(x); }, gen::SigmoidBackward0>>("sigmoid"),
      row<gen::TanhBackward0, of_input<[](const at::Tensor& x) { return at::tanh(x); }, gen::TanhBackward0>>("tanh"),
      row<gen::ExpBackward0, of_input<[](const at::Tensor& x) { return at::exp(x); }, gen::ExpBackward0>>("exp"),
      row<gen::RsqrtBackward0, of_input<[](const at::Tensor& x) { return at::rsqrt(x); }, gen::RsqrtBackward0>>("rsqrt"),
      row<gen::NegBackward0, of_input<[](const at::Tensor& x) { return at::neg(x); }, gen::NegBackward0>>("neg"),
      row<gen::SoftmaxBackward0, of_softmax<[](const at::Tensor& x, int64_t dim, bool half) { return at::_softmax(x, dim, half); }, gen::SoftmaxBackward0>>("softmax"),
      row<gen::LogSoftmaxBackward0, of_softmax<[](const at::Tensor& x, int64_t dim, bool half) { return at::_log_softmax(x, dim, half); }, gen::LogSoftmaxBackward0>>("log_softmax"),
      row<gen::PowBackward0, [](gen::PowBackward0& node, In& in) -> Redo {
        in.saved(node.self_, 0);
        return [exponent = in.scalar(node.exponent)](Values v) { return at::pow(v[0], exponent); };
      }>("pow"),
      row<gen::MulBackward0, of_both_saved<[](const at::Tensor& a, const at::Tensor& b) { return at::mul(a, b); }, gen::MulBackward0>>("mul"),
      row<gen::DivBackward0, of_both_saved<[](const at::Tensor& a, const at::Tensor& b) { return at::div(a, b); }, gen::DivBackward0>>("div"),
      row<gen::MulBackward1, of_input_and_scalar<[](const at::Tensor& a, const c10::Scalar& b) { return at::mul(a, b); }, gen::MulBackward1>>("mul by a number"),
      row<gen::DivBackward1, of_input_and_scalar<[](const at::Tensor& a, const c10::Scalar& b) { return at::div(a, b); }, gen::DivBackward1>>("div by a number"),
      row<gen::AddBackward0, of_both_inputs<[](const at::Tensor& a, const at::Tensor& b, const c10::Scalar& c) { return at::add(a, b, c); }, gen::AddBackward0>>("add"),
      row<gen::SubBackward0, of_both_inputs<[](const at::Tensor& a, const at::Tensor& b, const c10::Scalar& c) { return at::sub(a, b, c); }, gen::SubBackward0>>("sub"),
      row<gen::ToCopyBackward0, copied<gen::ToCopyBackward0>>("cast"),
      row<gen::CloneBackward0, copied<gen::CloneBackward0>>("clone"),
      row<gen::NativeLayerNormBackward0, [](gen::NativeLayerNormBackward0& node, In& in) -> Redo {
        in.saved(node.input_, 0);
        in.saved_or_none(node.weight_);
        in.saved_or_none(node.bias_);
        std::vector<int64_t> shape = numbers(node.normalized_shape, in);
        std::optional<double> eps = in.layer_norm_eps(node.weight_);
        if (in.device().is_cpu()) {  // else its memory is not to be waited for
          in.saved_only(node.result2_);  // the reciprocal deviations
          if (!eps) eps = layer_norm_eps(in.value(0), in.value(1), in.value(2), in.value(3), shape);
        }
        if (!eps) in.refuse();
        return [shape = std::move(shape), eps = in.scalar(eps.value_or(0))](Values v) {
          return normed_again(v, eps, [&](double e) { return at::native_layer_norm(v[0], shape, optional(v[1]), optional(v[2]), e); });
        };
      }>("layer_norm"),
      row<gen::NativeGroupNormBackward0, [](gen::NativeGroupNormBackward0& node, In& in) -> Redo {
        in.saved(node.input_, 0);
        in.saved_or_none(node.weight_);
        in.input_or_none(2);
        const std::vector<int64_t> shape = numbers({node.N, node.C, node.HxW}, in);
        if (shape.empty()) return {};
        const std::optional<double> eps = eps_of_group_norm(node, in, shape);
        if (!eps) in.refuse();
        return [n = shape[0], c = shape[1], area = shape[2], group = in.scalar(node.group), eps = in.scalar(eps.value_or(0))](Values v) {
          return normed_again(v, eps, [&](double e) { return at::native_group_norm(v[0], optional(v[1]), optional(v[2]), n, c, area, group, e); });
        };
      }>("group_norm"),
      row<gen::NativeDropoutBackward0, [](gen::NativeDropoutBackward0& node, In& in) -> Redo {
        in.input(0);
        in.saved_only(node.result1_);
        const double p = in.scalar(node.p);
        return [scale = p == 1 ? 0.0 : 1.0 / (1.0 - p)](Values v) {
          return at::mul(v[0], at::mul(v[1].to(v[0].scalar_type()), scale));
        };
      }>("dropout"),
      view<gen::ViewBackward0, [](gen::ViewBackward0&, In& in) -> Redo {
        in.input(0);
        return [sizes = in.sizes().vec()](Values v) { return v[0].view(sizes); };
      }>("view"),
      view<gen::TransposeBackward0, [](gen::TransposeBackward0& node, In& in) -> Redo {
        in.input(0);
        return [a = in.scalar(node.dim0), b = in.scalar(node.dim1)](Values v) { return v[0].transpose(a, b); };
      }>("transpose"),
      view<gen::PermuteBackward0, [](gen::PermuteBackward0& node, In& in) -> Redo {
        in.input(0);
        for (const int64_t dim : node.dims) in.scalar(dim);
        return [dims = node.dims](Values v) { return v[0].permute(dims); };
      }>("permute"),
      view<gen::TBackward0, [](gen::TBackward0&, In& in) -> Redo {
        in.input(0);
        return [](Values v) { return v[0].t(); };
      }>("t"),
      view<gen::UnsqueezeBackward0, [](gen::UnsqueezeBackward0& node, In& in) -> Redo {
        in.input(0);
        return [dim = in.scalar(node.dim)](Values v) { return v[0].unsqueeze(dim); };
      }>("unsqueeze"),
      view<gen::ExpandBackward0, [](gen::ExpandBackward0&, In& in) -> Redo {
        in.input(0);
        return [sizes = in.sizes().vec()](Values v) { return v[0].expand(sizes); };
      }>("expand"),
      alias<gen::UnsafeViewBackward0, [](gen::UnsafeViewBackward0&, In& in) -> Redo {
        in.input(0);
        // A view would hold its base, and with it the storage, a second time.
        return [sizes = in.sizes().vec()](Values v) { return at::_unsafe_view(v[0], sizes); };
      }>("unsafe_view"),
      costly<gen::MmBackward0, [](gen::MmBackward0& node, In& in) -> Redo {
        in.saved(node.self_, 0);
        in.saved(node.mat2_, 1);
        return [](Values v) { return at::mm(v[0], v[1]); };
      }>("mm"),
      costly<gen::AddmmBackward0, [](gen::AddmmBackward0& node, In& in) -> Redo {
        in.input(0);
        in.saved(node.mat1_, 1);
        in.saved(node.mat2_, 2);
        return [beta = in.scalar(node.beta), alpha = in.scalar(node.alpha)](Values v) { return at::addmm(v[0], v[1], v[2], beta, alpha); };
      }>("addmm"),
      costly<gen::BmmBackward0, [](gen::BmmBackward0& node, In& in) -> Redo {
        in.saved(node.self_, 0);
        in.saved(node.mat2_, 1);
        return [](Values v) { return at::bmm(v[0], v[1]); };
      }>("bmm"),
      costly<gen::BaddbmmBackward0, [](gen::BaddbmmBackward0& node, In& in) -> Redo {
        in.input(0);
        in.saved(node.batch1_, 1);
        in.saved(node.batch2_, 2);
        return [beta = in.scalar(node.beta), alpha = in.scalar(node.alpha)](Values v) { return at::baddbmm(v[0], v[1], v[2], beta, alpha); };
      }>("baddbmm"),
      costly<gen::ConvolutionBackward0, [](gen::ConvolutionBackward0& node, In& in) -> Redo {
        in.saved(node.input_, 0);
        in.saved(node.weight_, 1);
        in.input_or_none(2);
        const auto& bias = node.bias_sym_sizes_opt.list;
        const bool has_bias = bias && !bias->empty() && bias->front() != 0;
        if (has_bias != (node.num_outputs() > 2 && node.next_edge(2).is_valid())) in.refuse();  // one that wants no gradient
        return [stride = numbers(node.stride, in), padding = numbers(node.padding, in), dilation = numbers(node.dilation, in),
                output_padding = numbers(node.output_padding, in), groups = numbers({node.groups}, in), transposed = in.scalar(node.transposed)](Values v) {
          return at::convolution(v[0], v[1], optional(v[2]), stride, padding, dilation, transposed, output_padding, groups.at(0));
        };
      }>("convolution"),
  };
  return *rows;
}
// clang-format on

}  // namespace

c10::Scalar Ingredients::scalar(const c10::Scalar& value) {
  scalar(value.type());
  value.isComplex()         ? (refuse(), void())
  : value.isFloatingPoint() ? void(scalar(value.toDouble()))
                            : void(scalar(value.toLong()));
  return value;
}

const RecipeRow* recipe_row(const torch::autograd::Node& node) {
  static const auto* by_type = [] {
    auto* map = new std::unordered_map<std::type_index, const RecipeRow*>;
    for (const TypedRow& typed : table()) map->emplace(*typed.type, &typed.row);
    return map;
  }();
  const auto found = by_type->find(typeid(node));
  return found == by_type->end() ? nullptr : found->second;
}

std::span<const RecipeRow> recipe_rows() {
  static const auto* rows = [] {
    auto* all = new std::vector<RecipeRow>;
    for (const TypedRow& typed : table()) all->push_back(typed.row);
    return all;
  }();
  return *rows;
}

}  // namespace ebbtide
