// The memory that a framework computes on, as the store sees it.
#pragma once

#include <ebbtide/pinned_pool/bytes.h>
#include <ebbtide/pinned_pool/export.h>

#include <cstddef>
#include <cstdint>
#include <memory>

namespace ebbtide {

/// Knows whether a storage lives, without keeping it alive. Destroyed on any thread, also under a lock of the store.
class EBBTIDE_API StorageWatch {
 public:
  virtual ~StorageWatch() = default;
  virtual bool alive() const noexcept = 0;
};

/// A strong reference to one storage of the framework; hooks implement it.
/// Lifetime: destroyed on threads of callers, never under a lock of the store: the last reference may run the
/// framework's own code. Only a `plain` one may end on a thread of the spill tier.
class EBBTIDE_API DeviceStorage {
 public:
  virtual ~DeviceStorage() = default;

  virtual std::byte* data() const noexcept = 0;
  virtual Bytes bytes() const noexcept = 0;
  /// How many hold the storage, this reference included.
  virtual int64_t references() const noexcept = 0;
  /// Whether its end does nothing but give memory back: no code of the user's, no interpreter lock.
  virtual bool plain() const noexcept = 0;
  /// What views of this storage name as theirs, see StoreCore::View.
  virtual const void* identity() const noexcept = 0;
  /// Null where nothing can be known of its end.
  virtual std::unique_ptr<StorageWatch> watch() const { return nullptr; }
};

}  // namespace ebbtide
