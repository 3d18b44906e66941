// The storages of a model's parameters and buffers, which never move.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/StorageImpl.h>
#include <c10/util/intrusive_ptr.h>

#include <atomic>
#include <mutex>
#include <unordered_map>

namespace ebbtide {

/// Holds storages weakly: an address that was reused by another storage is not mistaken for a parameter's.
/// Threads: all methods from any.
class ParameterRegistry {
 public:
  void add(const at::Tensor& tensor);
  bool contains(const c10::StorageImpl& storage) const;

 private:
  static constexpr size_t kLeastToPrune = 1024;

  std::atomic<bool> empty_{true};
  mutable std::mutex mutex_;
  std::unordered_map<const c10::StorageImpl*, c10::weak_intrusive_ptr<c10::StorageImpl>> storages_;
  size_t prune_at_ = kLeastToPrune;
};

}  // namespace ebbtide
