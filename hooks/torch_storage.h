// Torch's storages as the store sees them.
#pragma once

#include <ebbtide/transfer/device_storage.h>
#include <ebbtide/store/returned_memory.h>

#include <c10/core/Storage.h>
#include <c10/core/TensorImpl.h>

#include <memory>

namespace ebbtide {

/// A strong reference to a torch storage, and the version counter that tensors over it share.
class TorchStorage final : public DeviceStorage {
 public:
  TorchStorage(c10::Storage storage, c10::VariableVersion version) noexcept;

  /// A storage over memory that came back. Not resizable; keeps the memory alive.
  static std::shared_ptr<TorchStorage> over(const std::shared_ptr<ReturnedMemory>& memory);

  std::byte* data() const noexcept override;
  Bytes bytes() const noexcept override;
  int64_t references() const noexcept override;
  bool unchanged() const noexcept override;

  const c10::Storage& storage() const noexcept { return storage_; }
  const c10::VariableVersion& version() const noexcept { return version_; }

 private:
  c10::Storage storage_;
  c10::VariableVersion version_;
  uint32_t made_at_;
};

/// Identity of a version counter: two tensors with the same one see each other's in-place writes. Valid while the
/// counter lives.
const void* identity(const c10::VariableVersion& version) noexcept;

}  // namespace ebbtide
