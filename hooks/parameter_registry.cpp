#include <ebbtide/hooks/parameter_registry.h>

#include <algorithm>

namespace ebbtide {

void ParameterRegistry::add(const at::Tensor& tensor) {
  if (!tensor.defined() || !tensor.has_storage()) return;
  const auto storage = tensor.storage().getWeakStorageImpl();
  std::lock_guard lock(mutex_);
  if (storages_.size() >= prune_at_) {  // models come and go
    std::erase_if(storages_, [](const auto& known) { return known.second.expired(); });
    prune_at_ = std::max(kLeastToPrune, 2 * storages_.size());
  }
  empty_ = false;
  storages_.insert_or_assign(tensor.storage().unsafeGetStorageImpl(), storage);
}

bool ParameterRegistry::contains(const c10::StorageImpl& storage) const {
  if (empty_.load(std::memory_order_acquire)) return false;
  std::lock_guard lock(mutex_);
  const auto known = storages_.find(&storage);
  return known != storages_.end() && !known->second.expired();
}

}  // namespace ebbtide
