// The eps of a norm that has run, which torch keeps nowhere.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <tuple>

namespace ebbtide {

/// A usual value that gives the saved reciprocal deviations, `rstd`, of `input` normalised over `shape`, as far as one row
/// tells; none where no usual value does. `weight` and `bias`, undefined or not, choose the dtype of the statistics.
/// How: the row with the largest deviation reciprocal, hence the smallest variance, on which eps tells most, is normalised
/// alone, a candidate a time. Several may give it the same bits, and another row others: see with_deviations().
/// CPU tensors and fp32 statistics only: with bf16 many values fit.
std::optional<double> layer_norm_eps(const at::Tensor& input, const at::Tensor& weight, const at::Tensor& bias,
                                     const at::Tensor& rstd, at::IntArrayRef shape);

/// The same of a group norm, of which each group of a sample is a row: of `channels` / `groups` channels of `area` numbers.
std::optional<double> group_norm_eps(const at::Tensor& input, const at::Tensor& weight, const at::Tensor& bias,
                                     const at::Tensor& rstd, int64_t channels, int64_t area, int64_t groups);

/// The first result of `norm(eps)`, a native_layer_norm or the like, with the eps that makes its third the saved `rstd`:
/// `guess`, or another usual value. The deviations are all that eps makes of a norm, so the bits are those of the first
/// time. REQUIRES: as above. Errors: RuntimeError where no usual value makes them.
at::Tensor with_deviations(const at::Tensor& rstd, double guess,
                           const std::function<std::tuple<at::Tensor, at::Tensor, at::Tensor>(double)>& norm);

}  // namespace ebbtide
