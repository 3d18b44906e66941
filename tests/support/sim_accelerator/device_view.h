// The memory of a tensor on a pretend device, as tasks and the race detector need it.
#pragma once

#include <ATen/core/Tensor.h>

#include "tests/support/chaos_device.h"

namespace ebbtide::test {

/// A CPU tensor over the device memory of `tensor`, for use in a task. Keeps nothing alive: tasks outlive the tensors of
/// their call, as kernels on a GPU do.
at::Tensor view_on_cpu(const at::Tensor& tensor);

/// From its first byte to its last.
Span span_of(const at::Tensor& tensor);

}  // namespace ebbtide::test
