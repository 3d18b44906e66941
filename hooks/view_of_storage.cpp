#include <ebbtide/hooks/view_of_storage.h>

#include <c10/core/ScalarTypeToTypeMeta.h>
#include <c10/core/TensorOptions.h>
#include <c10/util/SmallVector.h>

#include <algorithm>

namespace ebbtide {
namespace {

/// What came back starts at a multiple of the largest element (complex double), so that every dtype's offset in it is
/// whole.
constexpr int64_t kOriginAlignment = 16;

}  // namespace

ViewOfStorage::ViewOfStorage(const at::Tensor& tensor)
    : offset_(tensor.storage_offset()),
      remainder_(reinterpret_cast<uintptr_t>(tensor.storage().data()) % kAlignment),
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

Bytes ViewOfStorage::end_of(const at::Tensor& tensor) {
  const auto sizes = tensor.sizes();
  const auto strides = tensor.strides();
  int64_t last = tensor.storage_offset();
  for (size_t i = 0; i < sizes.size(); ++i) last += (sizes[i] - 1) * strides[i];
  return Bytes((last + 1) * static_cast<int64_t>(tensor.itemsize()));
}

Rows ViewOfStorage::rows() const {
  struct Dimension {
    int64_t stride, size;  // in elements
  };
  // Which bytes are touched depends neither on the order of the dimensions nor on those that only repeat.
  c10::SmallVector<Dimension, 8> dimensions;
  for (size_t i = 0; i < sizes_and_strides_.size(); ++i) {
    const Dimension dimension{sizes_and_strides_.stride_at_unchecked(i), sizes_and_strides_.size_at_unchecked(i)};
    if (dimension.size > 1 && dimension.stride > 0) dimensions.push_back(dimension);
  }
  std::sort(dimensions.begin(), dimensions.end(), [](const auto& a, const auto& b) { return a.stride < b.stride; });

  // The finest ones that follow one another without a gap are a row, the others have to count rows.
  const auto* dimension = dimensions.begin();
  int64_t row = 1;
  for (; dimension != dimensions.end() && dimension->stride == row; ++dimension) row *= dimension->size;
  if (dimension == dimensions.end() || dimension->stride < row) return {};
  const int64_t pitch = dimension->stride;
  int64_t count = 1;
  for (; dimension != dimensions.end() && dimension->stride == pitch * count; ++dimension) count *= dimension->size;
  const auto itemsize = static_cast<int64_t>(dtype_.itemsize());
  if (dimension != dimensions.end() || begin().count() != offset_ * itemsize) return {};
  return {.row = Bytes(row * itemsize), .pitch = Bytes(pitch * itemsize), .count = count};
}

void ViewOfStorage::shift(Bytes bytes) noexcept {
  offset_ += bytes.count() / static_cast<int64_t>(dtype_.itemsize());
  remainder_ = (remainder_ - static_cast<size_t>(bytes.count())) % kAlignment;
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
