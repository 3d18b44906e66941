// Torch's storages as the store sees them.
#pragma once

#include <ebbtide/pinned_pool/export.h>
#include <ebbtide/store/returned_memory.h>
#include <ebbtide/transfer/device_storage.h>

#include <c10/core/Storage.h>
#include <c10/core/TensorImpl.h>

#include <memory>
#include <utility>

namespace ebbtide {

/// A strong reference to a torch storage.
class TorchStorage final : public DeviceStorage {
 public:
  explicit TorchStorage(c10::Storage storage) noexcept : storage_(std::move(storage)) {}
  ~TorchStorage() override;

  /// A storage over memory that came back. Not resizable; keeps the memory alive.
  static std::shared_ptr<TorchStorage> over(const std::shared_ptr<ReturnedMemory>& memory);

  std::byte* data() const noexcept override;
  Bytes bytes() const noexcept override;
  int64_t references() const noexcept override;
  bool plain() const noexcept override;
  const void* identity() const noexcept override { return storage_.unsafeGetStorageImpl(); }
  std::unique_ptr<StorageWatch> watch() const override;

  /// Whether it is memory of torch's own allocator for its device, or memory that came back: nobody else can reach or
  /// release it.
  static bool owns_plain_memory(const c10::StorageImpl& storage) noexcept;

  const c10::Storage& storage() const noexcept { return storage_; }

 private:
  c10::Storage storage_;
};

/// From now on storages are leaked instead of released: the interpreter ends, and what they run may need it.
EBBTIDE_API void leak_storages();

/// Identity of a version counter: two tensors with the same one see each other's in-place writes. Valid while the
/// counter lives.
const void* identity(const c10::VariableVersion& version) noexcept;

}  // namespace ebbtide
