#include <ebbtide/hooks/collective_marks.h>

#include <ATen/core/Tensor.h>
#include <ATen/core/boxing/KernelFunction.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>
#include <c10/core/DispatchKeySet.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <mutex>
#include <unordered_map>
#include <utility>

namespace ebbtide {
namespace {

/// Of the process. Leaked: collectives run until it ends.
class Marks {
 public:
  static Marks& instance() {
    static auto* marks = new Marks;
    return *marks;
  }

  void add(const at::Tensor& tensor) {
    if (!tensor.defined() || !tensor.has_storage()) return;
    const c10::Storage& storage = tensor.storage();
    std::lock_guard lock(mutex_);
    // An address is used again by others: not while there is a weak reference.
    storages_.try_emplace(storage.unsafeGetStorageImpl(), storage.getWeakStorageImpl());
    some_.store(true, std::memory_order_release);
    if (storages_.size() < prune_at_) return;
    std::erase_if(storages_, [](const auto& entry) { return entry.second.expired(); });
    prune_at_ = std::max(kLeastToPrune, 2 * storages_.size());
  }
  bool contains(const c10::Storage& storage) noexcept {
    if (!some_.load(std::memory_order_acquire)) return false;
    std::lock_guard lock(mutex_);
    return storages_.contains(storage.unsafeGetStorageImpl());
  }

 private:
  static constexpr size_t kLeastToPrune = 1024;

  std::atomic<bool> some_{false};
  std::mutex mutex_;
  std::unordered_map<const c10::StorageImpl*, c10::weak_intrusive_ptr<c10::StorageImpl>> storages_;
  size_t prune_at_ = kLeastToPrune;
};

void mark(const c10::IValue& value) {
  if (value.isTensor()) return Marks::instance().add(value.toTensor());
  if (!value.isList()) return;
  for (const c10::IValue& element : value.toListRef()) mark(element);
}

void marked(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) {
  for (const c10::IValue& argument : torch::jit::last(*stack, op.schema().arguments().size())) mark(argument);
  op.redispatchBoxed(keys & c10::after_ADInplaceOrView_keyset, stack);
}

}  // namespace

void mark_what_collectives_are_given() {
  static std::once_flag once;
  std::call_once(once, [] {
    // Torch has no kernels of c10d's there, and comes by with gradients on and off.
    constexpr auto kKey = c10::DispatchKey::ADInplaceOrView;
    static auto* library = new torch::Library(torch::Library::IMPL, "c10d", kKey, __FILE__, __LINE__);
    c10::Dispatcher& dispatcher = c10::Dispatcher::singleton();
    for (const c10::OperatorName& name : dispatcher.getAllOpNames()) {
      if (name.getNamespace() != "c10d") continue;
      const auto op = dispatcher.findOp(name);
      if (!op || op->hasKernelForDispatchKey(kKey)) continue;
      library->impl(name.name.c_str(), torch::CppFunction::makeFromBoxedFunction<&marked>());
    }
  });
}

bool given_to_collective(const c10::Storage& storage) noexcept {
  return Marks::instance().contains(storage);
}

}  // namespace ebbtide
