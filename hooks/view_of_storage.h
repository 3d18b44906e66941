// A tensor's geometry, without the tensor.
#pragma once

#include <ebbtide/pinned_pool/bytes.h>
#include <ebbtide/store/rows.h>

#include <ATen/core/Tensor.h>
#include <c10/core/Storage.h>
#include <c10/core/TensorImpl.h>
#include <c10/core/impl/SizesAndStrides.h>

#include <cstddef>
#include <cstdint>

namespace ebbtide {

/// What turns a storage into one view of it: sizes, strides, offset, dtype, device, conjugate and negative bits.
class ViewOfStorage {
 public:
  ViewOfStorage() = default;
  /// REQUIRES: a strided tensor with a storage and at least one element.
  explicit ViewOfStorage(const at::Tensor& tensor);

  /// First byte and one past the last that it touches, as offsets in the storage; strides are never negative in torch.
  Bytes begin() const noexcept;
  Bytes end() const noexcept;
  /// ViewOfStorage(tensor).end(). REQUIRES: as the constructor.
  static Bytes end_of(const at::Tensor& tensor);

  /// The rows that its bytes are, from begin() to end(); none where they lie in one run, where they are no such rows, or
  /// where the first does not begin at begin().
  Rows rows() const;

  /// The same bytes, seen from a storage that begins `bytes` earlier.
  void shift(Bytes bytes) noexcept;

  /// The view over `storage`, whose first byte was at offset `origin` of the storage that this view was taken from. A
  /// plain tensor without autograd metadata; in-place writes to it count on `version`.
  at::Tensor over(const c10::Storage& storage, Bytes origin, const c10::VariableVersion& version) const;

  /// The same elements in the same order at the same place.
  bool same_layout(const ViewOfStorage& other) const noexcept;

  const caffe2::TypeMeta& dtype() const noexcept { return dtype_; }
  c10::Device device() const noexcept { return device_; }
  c10::IntArrayRef sizes() const noexcept { return sizes_and_strides_.sizes_arrayref(); }
  c10::IntArrayRef strides() const noexcept { return sizes_and_strides_.strides_arrayref(); }
  int64_t offset() const noexcept { return offset_; }  ///< elements
  /// Address of the storage's first byte modulo kAlignment, that of torch's allocator for host memory.
  size_t remainder() const noexcept { return remainder_; }
  static constexpr size_t kAlignment = 64;

 private:
  c10::impl::SizesAndStrides sizes_and_strides_;
  int64_t offset_ = 0;  // elements
  size_t remainder_ = 0;
  caffe2::TypeMeta dtype_;
  c10::Device device_{c10::kCPU};
  bool conjugate_ = false;
  bool negative_ = false;
};

}  // namespace ebbtide
