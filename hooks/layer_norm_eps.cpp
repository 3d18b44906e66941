#include <ebbtide/hooks/layer_norm_eps.h>

#include <ATen/ops/native_layer_norm.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <tuple>

namespace ebbtide {
namespace {

constexpr std::array<double, 9> kUsual = {1e-5, 1e-6, 1e-12, 1e-8, 1e-7, 1e-3, 1e-4, 1e-10, 1e-9};

std::optional<at::Tensor> given(const at::Tensor& tensor) {
  return tensor.defined() ? std::optional(tensor) : std::nullopt;
}

}  // namespace

std::optional<double> layer_norm_eps(const at::Tensor& input, const at::Tensor& weight, const at::Tensor& bias,
                                     const at::Tensor& rstd, at::IntArrayRef shape) {
  if (!input.defined() || !rstd.defined() || !input.device().is_cpu() || rstd.scalar_type() != at::kFloat ||
      !rstd.is_contiguous() || !input.is_contiguous() || rstd.numel() == 0)
    return std::nullopt;
  const float* const deviations = rstd.const_data_ptr<float>();
  const int64_t row = std::max_element(deviations, deviations + rstd.numel()) - deviations;
  if (!std::isfinite(deviations[row])) return std::nullopt;
  const at::Tensor alone = input.view({rstd.numel(), -1}).narrow(0, row, 1).view(shape);
  for (const double eps : kUsual) {
    const float made = std::get<2>(at::native_layer_norm(alone, shape, given(weight), given(bias), eps)).item<float>();
    if (std::bit_cast<uint32_t>(made) == std::bit_cast<uint32_t>(deviations[row])) return eps;
  }
  return std::nullopt;
}

}  // namespace ebbtide
