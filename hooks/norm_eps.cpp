#include <ebbtide/hooks/norm_eps.h>

#include <ATen/ops/native_group_norm.h>
#include <ATen/ops/native_layer_norm.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace ebbtide {
namespace {

constexpr std::array<double, 9> kUsual = {1e-5, 1e-6, 1e-12, 1e-8, 1e-7, 1e-3, 1e-4, 1e-10, 1e-9};

std::optional<at::Tensor> given(const at::Tensor& tensor) {
  return tensor.defined() ? std::optional(tensor) : std::nullopt;
}

/// `deviation_of(row, eps)` normalises a row of `input` alone.
template <class DeviationOf>
std::optional<double> usual_eps(const at::Tensor& input, const at::Tensor& rstd, DeviationOf deviation_of) {
  if (!input.defined() || !rstd.defined() || !input.device().is_cpu() || rstd.scalar_type() != at::kFloat ||
      !rstd.is_contiguous() || !input.is_contiguous() || rstd.numel() == 0)
    return std::nullopt;
  const float* const deviations = rstd.const_data_ptr<float>();
  const int64_t row = std::max_element(deviations, deviations + rstd.numel()) - deviations;
  if (!std::isfinite(deviations[row])) return std::nullopt;
  const at::Tensor alone = input.view({rstd.numel(), -1}).narrow(0, row, 1);
  for (const double eps : kUsual) {
    const float made = deviation_of(alone, eps).template item<float>();
    if (std::bit_cast<uint32_t>(made) == std::bit_cast<uint32_t>(deviations[row])) return eps;
  }
  return std::nullopt;
}

}  // namespace

std::optional<double> layer_norm_eps(const at::Tensor& input, const at::Tensor& weight, const at::Tensor& bias,
                                     const at::Tensor& rstd, at::IntArrayRef shape) {
  return usual_eps(input, rstd, [&](const at::Tensor& row, double eps) {
    return std::get<2>(at::native_layer_norm(row.view(shape), shape, given(weight), given(bias), eps));
  });
}

std::optional<double> group_norm_eps(const at::Tensor& input, const at::Tensor& weight, const at::Tensor& bias,
                                     const at::Tensor& rstd, int64_t channels, int64_t area, int64_t groups) {
  // Channels-last ones have a kernel of their own, which adds up in another order.
  if (!input.defined() || input.suggest_memory_format() != at::MemoryFormat::Contiguous) return std::nullopt;
  const int64_t each = channels / groups;
  const auto of_a_group = [&](const at::Tensor& parameter) {
    return parameter.defined() ? std::optional(parameter.narrow(0, 0, each)) : std::nullopt;
  };
  return usual_eps(input, rstd, [&](const at::Tensor& row, double eps) {
    return std::get<2>(
        at::native_group_norm(row.view({1, each, area}), of_a_group(weight), of_a_group(bias), 1, each, area, 1, eps));
  });
}

at::Tensor with_deviations(const at::Tensor& rstd, double guess,
                           const std::function<std::tuple<at::Tensor, at::Tensor, at::Tensor>(double)>& norm) {
  const auto made_with = [&](double eps) {
    const auto [made, mean, deviations] = norm(eps);
    const bool same = deviations.nbytes() == rstd.nbytes() &&
                      std::memcmp(deviations.const_data_ptr(), rstd.const_data_ptr(), rstd.nbytes()) == 0;
    return same ? made : at::Tensor();
  };
  at::Tensor made = made_with(guess);
  for (size_t i = 0; i < kUsual.size() && !made.defined(); ++i)
    if (kUsual[i] != guess) made = made_with(kUsual[i]);
  TORCH_CHECK(made.defined(), "ebbtide: a norm that was to be computed again has an unusual eps, which torch does not ",
              "tell. Attach the model to the store, or open it with recompute=False.");
  return made;
}

}  // namespace ebbtide
