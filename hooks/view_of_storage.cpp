#include <ebbtide/hooks/view_of_storage.h>

#include <c10/core/ScalarTypeToTypeMeta.h>
#include <c10/core/TensorOptions.h>

namespace ebbtide {
namespace {

/// What came back starts at a multiple of the largest element (complex double), so that every dtype's offset in it is
/// whole.
constexpr int64_t kOriginAlignment = 16;

}  // namespace

ViewOfStorage::ViewOfStorage(const at::Tensor& tensor)
    : offset_(tensor.storage_offset()),
      dtype_(tensor.dtype()),
      device_(tensor.device()),
      conjugate_(tensor.is_conj()),
      negative_(tensor.is_neg()) {
  const auto sizes = tensor.sizes();
  const auto strides = tensor.strides();
  sizes_and_strides_.resize(sizes.size());
  for (size_t i = 0; i < sizes.size(); ++i) {
    sizes_and_strides_.size_at_unchecked(i) = sizes[i];
    sizes_and_strides_.stride_at_unchecked(i) = strides[i];
  }
}

Bytes ViewOfStorage::begin() const noexcept {
  const int64_t first = offset_ * static_cast<int64_t>(dtype_.itemsize());
  return Bytes(first / kOriginAlignment * kOriginAlignment);
}

Bytes ViewOfStorage::end() const noexcept {
  int64_t last = offset_;
  for (size_t i = 0; i < sizes_and_strides_.size(); ++i)
    last += (sizes_and_strides_.size_at_unchecked(i) - 1) * sizes_and_strides_.stride_at_unchecked(i);
  return Bytes((last + 1) * static_cast<int64_t>(dtype_.itemsize()));
}

void ViewOfStorage::shift(Bytes bytes) noexcept {
  offset_ += bytes.count() / static_cast<int64_t>(dtype_.itemsize());
}

bool ViewOfStorage::same_layout(const ViewOfStorage& other) const noexcept {
  if (offset_ != other.offset_ || dtype_ != other.dtype_ || device_ != other.device_ ||
      conjugate_ != other.conjugate_ || negative_ != other.negative_ || sizes() != other.sizes())
    return false;
  for (size_t i = 0; i < sizes().size(); ++i)
    if (sizes()[i] != 1 && strides()[i] != other.strides()[i]) return false;
  return true;
}

at::Tensor ViewOfStorage::over(const c10::Storage& storage, Bytes origin, const c10::VariableVersion& version) const {
  const c10::DispatchKeySet keys(c10::computeDispatchKey(c10::typeMetaToScalarType(dtype_), c10::kStrided, device_));
  auto tensor = at::detail::make_tensor<c10::TensorImpl>(c10::Storage(storage), keys, dtype_);
  c10::TensorImpl& impl = *tensor.unsafeGetTensorImpl();
  impl.set_sizes_and_strides(sizes_and_strides_.sizes_arrayref(), sizes_and_strides_.strides_arrayref(),
                             offset_ - origin.count() / static_cast<int64_t>(dtype_.itemsize()));
  if (conjugate_) impl._set_conj(true);
  if (negative_) impl._set_neg(true);
  impl.set_version_counter(version);
  return tensor;
}

}  // namespace ebbtide
