#include <ebbtide/hooks/pass_through.h>
#include <ebbtide/hooks/saved_tensor.h>
#include <ebbtide/hooks/torch_storage.h>

#include <ATen/ops/empty.h>
#include <c10/util/Type.h>
#include <torch/csrc/autograd/anomaly_mode.h>
#include <torch/csrc/autograd/engine.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/csrc/autograd/variable.h>

#include <atomic>
#include <optional>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>

namespace ebbtide {
namespace {

std::atomic<void (*)(const Error&)> translate{nullptr};

/// Runs `body`; the store's errors leave as what the process wants them to be.
template <class Body>
auto translated(Body&& body) {
  try {
    return body();
  } catch (const Error& error) {
    if (auto* rethrow = translate.load()) rethrow(error);
    throw;
  }
}

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
    hooks_of(*core_)->recipes.backward_ended();
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

void set_error_translator(void (*rethrow)(const Error& error)) {
  translate = rethrow;
}

SavedTensor::SavedTensor(Scope& scope)
    : memory_(*scope.hooks().saved_tensors),
      scope_(&scope),
      tensor_(c10::intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl>()) {}

std::unique_ptr<SavedTensor> SavedTensor::make(Scope& scope) {
  return std::unique_ptr<SavedTensor>(new (*scope.hooks().saved_tensors) SavedTensor(scope));
}

void SavedTensor::operator delete(SavedTensor* saved, std::destroying_delete_t) noexcept {
  BlockCache& memory = saved->memory_;
  saved->~SavedTensor();
  memory.give(saved);
}

void SavedTensor::call_pack_hook(const at::Tensor& tensor) {
  Scope& scope = *std::exchange(scope_, nullptr);
  StoreCore& core = *scope.core();
  const c10::TensorImpl& impl = *tensor.unsafeGetTensorImpl();
  version_ = impl.version_counter();
  saved_version_ = version_.enabled() ? version_.current_version() : 0;
  if (const auto& producer = tensor.grad_fn()) {
    producer_ = &typeid(*producer);
    c10::raw::weak_intrusive_ptr::incref(tensor.unsafeGetTensorImpl());
    tensor_ = decltype(tensor_)::reclaim(tensor.unsafeGetTensorImpl());
  }
  const bool on_host = tensor.device().is_cpu();
  HooksOfStore& hooks = scope.hooks();
  Accelerators::Served served;
  StreamId stream = kHostStream;
  const char* reason = why_pass_through(tensor, core.min_bytes(on_host), hooks.parameters, hooks.accelerators);
  if (reason == nullptr && !on_host) {
    served = hooks.accelerators.of(core, tensor.device());
    stream = current_stream(tensor.device());
    reason = why_not_from(served, stream);
  }
  if (reason != nullptr) {
    core.note_passed_through(reason, storage_footprint(tensor));
    // A result keeps its node, which keeps this hook: as torch does, keep such a tensor without its history.
    passed_through_ = producer_ != nullptr ? tensor.tensor_data() : tensor;
    return;
  }
  view_ = ViewOfStorage(tensor);
  const c10::Storage& storage = tensor.storage();
  const StoreCore::View view{.storage = storage.unsafeGetStorageImpl(),
                             .version_counter = identity(version_),
                             .version = saved_version_,
                             .begin = view_.begin(),
                             .end = view_.end(),
                             .rows = on_host ? Rows() : view_.rows(),
                             .footprint = Bytes(static_cast<int64_t>(storage.nbytes())),
                             .dtype = static_cast<uint32_t>(tensor.scalar_type()),
                             .op = producer_ != nullptr ? producer_->name() : nullptr,
                             .device = served.number,
                             .stream = stream};
  auto packed = translated([&] {
    return core.pack(scope.pass(), view, [&] {
      return std::allocate_shared<TorchStorage>(BlockAllocator<TorchStorage>(hooks.storages), storage);
    });
  });
  record_ = std::move(packed.record);
  view_.shift(packed.origin);
  if (!on_host) note_current_stream(storage);
  if (!packed.wants_recipes) return;
  const RecipeBook::Packed result{tensor, record_, view_, packed.origin, saved_version_, served.device, stream};
  trial_ = translated([&] { return hooks.recipes.packed(core, result, packed.wanted); });
}

at::Tensor SavedTensor::call_unpack_hook() {
  check_version();
  if (passed_through_.defined()) return passed_through_;
  announce_backward();
  const StorageOfRecord found =
      translated([&] { return storage_of(*record_, view_.device(), StoreCore::AskedBy::kBackward); });
  if (const auto trial = std::exchange(trial_, nullptr))
    hooks_of(record_->core())->recipes.try_out(record_->core(), *trial);
  // With the counter of the tensor that was saved: a write to what is handed out is a write to the saved tensor, as in
  // torch.
  return view_.over(found.storage->storage(), found.origin, version_);
}

Operand SavedTensor::operand() const {
  return {.record = record_, .view = view_, .version = version_, .saved_version = saved_version_};
}

void SavedTensor::announce_backward() {
  const int task = torch::autograd::get_current_graph_task_id();
  if (task == -1 || !record_->core().task_began(*record_, task)) return;
  torch::autograd::Engine::get_default_engine().queue_callback(
      [end = std::make_shared<BackwardEnd>(record_, view_.device(), task)] { end->succeeded(); });
}

std::string SavedTensor::producer() const {
  if (auto alive = tensor_.lock()) {
    const at::Tensor tensor(std::move(alive));
    if (tensor.grad_fn()) return tensor.grad_fn()->name();
  }
  // As the nodes that torch generates name themselves; others go by their whole type.
  const std::string name = c10::demangle(producer_->name());
  constexpr std::string_view kGenerated = "torch::autograd::generated::";
  return name.starts_with(kGenerated) ? name.substr(kGenerated.size()) : name;
}

void SavedTensor::check_version() const {
  if (unchanged()) return;
  // In torch's words (torch/csrc/autograd/saved_variable.cpp), which does not compare versions itself where there are
  // hooks.
  std::ostringstream message;
  message << "one of the variables needed for gradient computation has been modified by an inplace operation: [";
  if (passed_through_.defined())
    message << passed_through_.toString() << " " << passed_through_.sizes() << "]";
  else
    message << at::empty({0}, at::TensorOptions().dtype(view_.dtype())).toString() << " " << view_.sizes() << "]";
  // Torch counts the outputs of no tensor that its consumer saved.
  if (producer_ != nullptr) message << ", which is output 0 of " << producer() << ",";
  message << " is at version " << version_.current_version() << "; expected version " << saved_version_ << " instead.";
  if (torch::autograd::AnomalyMode::is_enabled())
    message << " Hint: the backtrace further above shows the operation that failed to compute its gradient. The "
               "variable in question was changed in there or "
               "anywhere later. Good luck!";
  else
    message << " Hint: enable anomaly detection to find the operation that failed to compute its gradient, with "
               "torch.autograd.set_detect_anomaly(True, check_nan=False).";
  TORCH_CHECK(false, message.str());
}

}  // namespace ebbtide
