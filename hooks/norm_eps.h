// The eps of a norm that has run, which torch keeps nowhere.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace ebbtide {

/// The usual value that gives the saved reciprocal deviations, `rstd`, of `input` normalised over `shape`; none where
/// no usual value does. `weight` and `bias`, undefined or not, choose the dtype of the statistics.
/// How: the row with the largest deviation reciprocal, hence the smallest variance, is normalised alone, a candidate a
/// time. Values far apart that give this row the same bits are all below half an ulp of its variance, and so of every
/// other row's: they give all rows the same bits. CPU tensors and fp32 statistics only: with bf16 many values fit.
std::optional<double> layer_norm_eps(const at::Tensor& input, const at::Tensor& weight, const at::Tensor& bias,
                                     const at::Tensor& rstd, at::IntArrayRef shape);

/// The same of a group norm, of which each group of a sample is a row: of `channels` / `groups` channels of `area` numbers.
std::optional<double> group_norm_eps(const at::Tensor& input, const at::Tensor& weight, const at::Tensor& bias,
                                     const at::Tensor& rstd, int64_t channels, int64_t area, int64_t groups);

}  // namespace ebbtide
