#include <ebbtide/hooks/pass_through.h>
#include <ebbtide/hooks/torch_storage.h>
#include <ebbtide/hooks/view_of_storage.h>

#include <c10/core/impl/COW.h>

#include <atomic>

namespace ebbtide {
namespace {

std::atomic<bool (*)(const at::Tensor&)> knows_python{nullptr};

bool has_python_part(const at::Tensor& tensor) {
  const auto function = knows_python.load(std::memory_order_relaxed);
  return function != nullptr && function(tensor);
}

/// Torch's newest versions know no names.
template <class Impl>
bool has_names(const Impl& impl) {
  if constexpr (requires { impl.has_named_tensor_meta(); })
    return impl.has_named_tensor_meta();
  else
    return false;
}

/// Kinds whose storage must not even be looked at: some throw when asked for its address.
const char* why_kind(const at::Tensor& tensor) {
  using c10::DispatchKey;
  c10::TensorImpl& impl = *tensor.unsafeGetTensorImpl();
  const c10::DispatchKeySet keys = impl.key_set();
  if (keys.has(DispatchKey::Python)) return "tensor subclass";
  if (keys.has_any(c10::DispatchKeySet({DispatchKey::FuncTorchBatched, DispatchKey::FuncTorchGradWrapper,
                                        DispatchKey::BatchedNestedTensor, DispatchKey::Functionalize})))
    return "inside a function transform";
  if (keys.has(DispatchKey::ZeroTensor)) return "zero tensor";
  if (impl.is_inference()) return "inference tensor";
  if (tensor.is_nested()) return "nested";
  if (tensor.layout() != c10::kStrided) return "not strided (sparse or mkldnn)";
  if (tensor.is_quantized()) return "quantised";
  if (tensor.is_meta()) return "meta tensor";
  if (impl.has_symbolic_sizes_strides()) return "symbolic sizes";
  if (has_names(impl)) return "named dimensions";
  if (!impl.has_storage()) return "no storage";
  return nullptr;
}

}  // namespace

const char* why_pass_through(const at::Tensor& tensor, Bytes min_bytes, const ParameterRegistry& parameters,
                             const Accelerators& accelerators) {
  if (const char* kind = why_kind(tensor)) return kind;
  if (!tensor.device().is_cpu() && !accelerators.serves(tensor.device().type()))
    return "on a device that is not served";
  if (tensor.numel() == 0) return "no elements";
  c10::StorageImpl& storage = *tensor.storage().unsafeGetStorageImpl();
  if (static_cast<int64_t>(storage.nbytes()) < min_bytes.count()) return "under min_bytes";
  if (is_parameter(tensor) || (tensor.is_view() && is_parameter(tensor._base()))) return "parameter or leaf";
  if (parameters.contains(storage)) return "parameter or buffer of an attached model";
  if (c10::impl::cow::is_cow_data_ptr(storage._mutable_data_ptr_no_checks())) return "copy-on-write storage";
  if (!TorchStorage::owns_plain_memory(storage)) return "memory of another owner (shared, mapped, numpy)";
  if (ViewOfStorage::end_of(tensor).count() > static_cast<int64_t>(storage.nbytes()))
    return "storage smaller than its view";
  // Of those with gradients torch itself hands out another object when there are hooks.
  if (!tensor.requires_grad() && has_python_part(tensor)) return "of a class of Python's, or with attributes";
  return nullptr;
}

bool is_parameter(const at::TensorBase& tensor) {
  return tensor.is_leaf() && tensor.requires_grad();
}

bool is_plain(const at::Tensor& tensor) {
  return tensor.defined() && why_kind(tensor) == nullptr;
}

void set_has_python_part(bool (*function)(const at::Tensor&)) noexcept {
  knows_python = function;
}

Bytes storage_footprint(const at::Tensor& tensor) {
  if (why_kind(tensor) != nullptr) return Bytes(0);
  return Bytes(static_cast<int64_t>(tensor.storage().unsafeGetStorageImpl()->nbytes()));
}

}  // namespace ebbtide
