#include "tests/support/sim_accelerator/device_view.h"

#include <ATen/EmptyTensor.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/from_blob.h>

namespace ebbtide::test {
namespace {

/// Not data_ptr(): the bits are looked at as they are, whatever kind of tensor they belong to.
std::byte* first_byte(const at::Tensor& tensor) {
  return static_cast<std::byte*>(const_cast<void*>(tensor.storage().data())) +
         tensor.storage_offset() * static_cast<int64_t>(tensor.itemsize());
}

}  // namespace

at::Tensor view_on_cpu(const at::Tensor& tensor) {
  const auto options = tensor.options().device(at::kCPU);
  if (tensor.numel() == 0) return at::empty_strided(tensor.sizes(), tensor.strides(), options);
  at::Tensor view = at::from_blob(first_byte(tensor), tensor.sizes(), tensor.strides(), options);
  if (tensor.is_conj()) view.unsafeGetTensorImpl()->_set_conj(true);
  if (tensor.is_neg()) view.unsafeGetTensorImpl()->_set_neg(true);
  return view;
}

Span span_of(const at::Tensor& tensor) {
  if (tensor.numel() == 0) return {};
  return {first_byte(tensor), at::detail::computeStorageNbytes(tensor.sizes(), tensor.strides(), tensor.itemsize())};
}

}  // namespace ebbtide::test
