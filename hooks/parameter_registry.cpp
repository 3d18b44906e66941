#include <ebbtide/hooks/parameter_registry.h>

namespace ebbtide {

void ParameterRegistry::add(const at::Tensor& tensor) {
  if (!tensor.defined() || !tensor.has_storage()) return;
  const auto storage = tensor.storage().getWeakStorageImpl();
  std::lock_guard lock(mutex_);
  storages_.insert_or_assign(tensor.storage().unsafeGetStorageImpl(), storage);
}

bool ParameterRegistry::contains(const c10::StorageImpl& storage) const {
  std::lock_guard lock(mutex_);
  const auto known = storages_.find(&storage);
  return known != storages_.end() && !known->second.expired();
}

}  // namespace ebbtide
