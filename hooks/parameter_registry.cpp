#include <ebbtide/hooks/parameter_registry.h>
#include <ebbtide/hooks/torch_storage.h>

#include <ATen/SequenceNumber.h>
#include <ATen/record_function.h>

#include <algorithm>
#include <utility>

namespace ebbtide {

void ParameterRegistry::add(const at::Tensor& tensor) {
  if (!tensor.defined() || !tensor.has_storage()) return;
  c10::VariableVersion version = tensor.unsafeGetTensorImpl()->version_counter();
  const uint32_t now = version.enabled() ? version.current_version() : 0;
  std::lock_guard lock(mutex_);
  if (storages_.size() >= prune_at_) {  // models come and go
    std::erase_if(storages_, [](const auto& known) { return known.second.storage.expired(); });
    prune_at_ = std::max(kLeastToPrune, 2 * storages_.size());
  }
  empty_ = false;
  storages_.insert_or_assign(tensor.storage().unsafeGetStorageImpl(),
                             Known{tensor.storage().getWeakStorageImpl(), std::move(version), now, std::nullopt});
}

bool ParameterRegistry::contains(const c10::StorageImpl& storage) const {
  if (empty_.load(std::memory_order_acquire)) return false;
  std::lock_guard lock(mutex_);
  const auto known = storages_.find(&storage);
  return known != storages_.end() && !known->second.storage.expired();
}

void ParameterRegistry::note_layer_norm(const at::Tensor& weight, double eps) {
  if (!weight.defined() || !weight.has_storage()) return;
  std::lock_guard lock(mutex_);
  const auto known = storages_.find(weight.storage().unsafeGetStorageImpl());
  if (known != storages_.end()) known->second.eps = eps;
}

std::optional<double> ParameterRegistry::layer_norm_eps(const at::Tensor& weight) const {
  std::lock_guard lock(mutex_);
  const auto known = storages_.find(weight.storage().unsafeGetStorageImpl());
  return known != storages_.end() && !known->second.storage.expired() ? known->second.eps : std::nullopt;
}

void ParameterRegistry::take_down_versions() {
  std::lock_guard lock(mutex_);
  thread_ = at::RecordFunction::currentThreadId();
  sequence_ = at::sequence_number::peek();
  for (auto& [storage, known] : storages_)
    if (known.version.enabled()) known.taken_down = known.version.current_version();
}

bool ParameterRegistry::unchanged_since(const torch::autograd::Node& node, const at::Tensor& parameter) const {
  const c10::VariableVersion& version = parameter.unsafeGetTensorImpl()->version_counter();
  std::lock_guard lock(mutex_);
  const auto known = storages_.find(parameter.storage().unsafeGetStorageImpl());
  return known != storages_.end() && version.enabled() && identity(known->second.version) == identity(version) &&
         known->second.taken_down == version.current_version() && node.thread_id() == thread_ &&
         node.sequence_nr() >= sequence_;
}

}  // namespace ebbtide
