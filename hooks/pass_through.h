// Which saved tensors the store must not touch.
#pragma once

#include <ebbtide/hooks/accelerators.h>
#include <ebbtide/hooks/parameter_registry.h>
#include <ebbtide/pinned_pool/bytes.h>
#include <ebbtide/pinned_pool/export.h>

#include <ATen/core/Tensor.h>

namespace ebbtide {

/// Why `tensor` stays with autograd, in the words of the report; null if it may move. The strings are literals.
const char* why_pass_through(const at::Tensor& tensor, Bytes min_bytes, const ParameterRegistry& parameters,
                             const Accelerators& accelerators);

bool is_parameter(const at::TensorBase& tensor);

/// Strided, with a storage, and of none of the kinds whose storage or ops are somebody else's business.
bool is_plain(const at::Tensor& tensor);

/// The storage's size in bytes; 0 for kinds that have none.
Bytes storage_footprint(const at::Tensor& tensor);

/// Who knows whether Python has given a tensor a class or attributes, the Python module, says so when it is loaded. Until
/// then none has either.
EBBTIDE_API void set_has_python_part(bool (*function)(const at::Tensor&)) noexcept;

}  // namespace ebbtide
