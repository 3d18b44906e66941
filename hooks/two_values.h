// Tensors of two values, a bit an element.
#pragma once

#include <ebbtide/hooks/recipe.h>
#include <ebbtide/pinned_pool/export.h>

#include <ATen/core/Tensor.h>

#include <optional>

namespace ebbtide {

/// What makes the storage of `tensor` again from a bit an element, where it holds no more than two values: masks, and
/// the noise of a dropout on a CPU, which is 0 and 1/(1-p). Values are compared as bytes, all of them: there is nothing
/// to be tried out. Of others a few elements are read.
/// REQUIRES: of CPU memory, plain (is_plain), fills its storage.
EBBTIDE_API std::optional<Step> as_bits(const at::Tensor& tensor);

}  // namespace ebbtide
