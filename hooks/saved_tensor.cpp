#include <ebbtide/hooks/arithmetic.h>
#include <ebbtide/hooks/engine.h>
#include <ebbtide/hooks/error_translation.h>
#include <ebbtide/hooks/pass_through.h>
#include <ebbtide/hooks/region.h>
#include <ebbtide/hooks/saved_tensor.h>
#include <ebbtide/hooks/torch_storage.h>
#include <ebbtide/hooks/wrapper.h>

#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/engine.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/csrc/autograd/variable.h>

#include <optional>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

namespace ebbtide {
namespace {

/// Tells the store that a graph task is over, however it ended: called, the backward succeeded; destroyed uncalled, it
/// threw. Not at its destruction alone: a thread of the engine's may hold the graph task for a while after the backward
/// has returned.
class BackwardEnd {
 public:
  BackwardEnd(const std::shared_ptr<Record>& record, c10::Device device, int task)
      : core_(record->shared_core()), pass_(record->shared_pass()), device_(device), task_(task) {}
  ~BackwardEnd() { note(std::nullopt); }
  BackwardEnd(const BackwardEnd&) = delete;
  BackwardEnd& operator=(const BackwardEnd&) = delete;

  /// It succeeded. The engine calls on the streams that were current where the backward was.
  void succeeded() { note(device_.is_cpu() ? std::nullopt : std::optional(current_stream(device_))); }

 private:
  void note(std::optional<StreamId> stream) noexcept {
    if (std::exchange(noted_, true)) return;
    core_->task_ended(*pass_, task_, stream);
    hooks_of(*core_)->recipes.backward_ended(*core_);
  }

  bool noted_ = false;
  std::shared_ptr<StoreCore> core_;
  std::shared_ptr<Pass> pass_;
  c10::Device device_;
  int task_;
};

/// Why the tensors of a device that is served in general do not move now; null if they do.
const char* why_not_from(const Accelerators::Served& served, StreamId stream) {
  if (!served.device) return "on a device that could not be opened";
  const Result<bool> capturing = served.device->capturing(stream);
  return capturing.ok() && capturing.value() ? "inside a graph capture" : nullptr;
}

}  // namespace

/// What is left of a wrapper.
struct SavedTensor::Apart {
  std::unique_ptr<EmptyWrapper> wrapper;
  std::vector<std::unique_ptr<SavedTensor>> inner;
  std::string described;  ///< for errors
};

SavedTensor::~SavedTensor() = default;

SavedTensor::SavedTensor(Scope& scope, Recipes recipes)
    : memory_(*scope.hooks().saved_tensors), scope_(&scope), recipes_(recipes) {}

std::unique_ptr<SavedTensor> SavedTensor::make(Scope& scope, Recipes recipes) {
  return std::unique_ptr<SavedTensor>(new (*scope.hooks().saved_tensors) SavedTensor(scope, recipes));
}

void SavedTensor::operator delete(SavedTensor* saved, std::destroying_delete_t) noexcept {
  BlockCache& memory = saved->memory_;
  saved->~SavedTensor();
  memory.give(saved);
}

void SavedTensor::call_pack_hook(const at::Tensor& tensor) {
  Scope& scope = *std::exchange(scope_, nullptr);
  StoreCore& core = *scope.core();
  version_.note(tensor);
  if (in_forked_child()) return pass_through(tensor);  // by Python's own hooks: the engine gives none of ours there
  if (tensor.unsafeGetTensorImpl()->key_set().has(c10::DispatchKey::Python) && pack_apart(tensor, scope)) return;
  const bool on_host = tensor.device().is_cpu();
  arithmetic_ = arithmetic_now(on_host);
  HooksOfStore& hooks = scope.hooks();
  Accelerators::Served served;
  StreamId stream = kHostStream;
  const char* reason = why_pass_through(tensor, core.min_bytes(on_host), hooks.parameters, hooks.accelerators);
  if (reason == nullptr && !on_host) {
    scope.carry();
    served = hooks.accelerators.of(core, tensor.device());
    stream = current_stream(tensor.device());
    reason = why_not_from(served, stream);
  }
  if (reason != nullptr) {
    core.note_passed_through(reason, storage_footprint(tensor));
    return pass_through(tensor);
  }
  view_ = ViewOfStorage(tensor);
  const c10::Storage& storage = tensor.storage();
  const StoreCore::View view{.storage = storage.unsafeGetStorageImpl(),
                             .version_counter = identity(version_.counter()),
                             .version = version_.saved(),
                             .begin = view_.begin(),
                             .end = view_.end(),
                             .rows = on_host ? Rows() : view_.rows(),
                             .footprint = Bytes(static_cast<int64_t>(storage.nbytes())),
                             .dtype = static_cast<uint32_t>(tensor.scalar_type()),
                             .op = version_.producer() != nullptr ? version_.producer()->name() : nullptr,
                             .device = served.number,
                             .stream = stream,
                             .region = current_region(),
                             // Torch's rrelu packs its noise before its kernel writes it, and tells no version.
                             .written_later = !on_host && version_.producer() == nullptr && version_.saved() == 0};
  auto packed = translated([&] {
    return core.pack(scope.pass(), view, [&] {
      return std::allocate_shared<TorchStorage>(BlockAllocator<TorchStorage>(hooks.storages), storage);
    });
  });
  record_ = std::move(packed.record);
  view_.shift(packed.origin);
  if (!on_host) note_current_stream(storage);
  if (!packed.wants_recipes || recipes_ == Recipes::kNone) return;
  const RecipeBook::Packed result{tensor, record_, view_, packed.origin, version_.saved(), served.device, stream};
  trial_ = translated([&] { return hooks.recipes.packed(core, result, packed.wanted); });
}

/// A result keeps its node, which keeps this hook: as torch does, such a tensor is kept without its history.
void SavedTensor::pass_through(const at::Tensor& tensor) {
  passed_through_ = version_.producer() != nullptr ? tensor.tensor_data() : tensor;
}

/// Whether the tensor is a wrapper that can be taken apart. Parameters are not: they live anyway.
bool SavedTensor::pack_apart(const at::Tensor& tensor, Scope& scope) {
  if (is_parameter(tensor) || (tensor.is_view() && is_parameter(tensor._base()))) return false;
  TakenApart parts = take_apart(tensor);
  if (!parts.wrapper) return false;
  auto apart = std::make_unique<Apart>();
  std::ostringstream described;
  described << tensor.toString() << " " << tensor.sizes();
  apart->described = described.str();
  apart->wrapper = std::move(parts.wrapper);
  for (const at::Tensor& inner : parts.inner) {
    apart->inner.push_back(make(scope, Recipes::kNone));
    apart->inner.back()->call_pack_hook(inner);
  }
  apart_ = std::move(apart);
  return true;
}

at::Tensor SavedTensor::unpack(StoreCore::AskedBy by) {
  if (!version_.unchanged()) {
    std::ostringstream text;
    if (apart_)
      text << apart_->described;
    else if (passed_through_.defined())
      text << passed_through_.toString() << " " << passed_through_.sizes();
    else
      text << at::empty({0}, at::TensorOptions().dtype(view_.dtype())).toString() << " " << view_.sizes();
    version_.raise(text.str());
  }
  if (passed_through_.defined()) return passed_through_;
  if (apart_) {
    std::vector<at::Tensor> inner;
    inner.reserve(apart_->inner.size());
    for (const auto& saved : apart_->inner) inner.push_back(saved->unpack(by));
    return apart_->wrapper->over(inner);
  }
  announce_backward();
  const StorageOfRecord found = translated([&] { return storage_of(*record_, view_.device(), by); });
  if (const auto trial = std::exchange(trial_, nullptr)) try_out(*trial, found);
  // With the counter of the tensor that was saved: a write to what is handed out is a write to the saved tensor, as in
  // torch.
  return view_.over(found.storage->storage(), found.origin, version_.counter());
}

void SavedTensor::try_out(const TorchRecipe& trial, const StorageOfRecord& kept) const {
  StoreCore& core = record_->core();
  const auto hooks = hooks_of(core);
  const c10::Device device = view_.device();
  const c10::Storage& bytes = kept.storage->storage();
  if (device.is_cpu()) return hooks->recipes.try_out(core, trial, bytes, kept.origin, nullptr, kHostStream);
  hooks->recipes.try_out(core, trial, bytes, kept.origin, hooks->accelerators.of(core, device).device,
                         current_stream(device));
}

Operand SavedTensor::operand() const {
  return {.record = record_, .view = view_, .version = version_.counter(), .saved_version = version_.saved()};
}

void SavedTensor::announce_backward() {
  const int task = torch::autograd::get_current_graph_task_id();
  if (task == -1 || !record_->core().task_began(*record_, task)) return;
  torch::autograd::Engine::get_default_engine().queue_callback(
      [end = std::make_shared<BackwardEnd>(record_, view_.device(), task)] { end->succeeded(); });
}

}  // namespace ebbtide
