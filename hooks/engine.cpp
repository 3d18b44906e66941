#include <ebbtide/hooks/carried_scope.h>
#include <ebbtide/hooks/counted_hooks.h>
#include <ebbtide/hooks/engine.h>
#include <ebbtide/hooks/hook_source.h>
#include <ebbtide/hooks/on_this_thread.h>
#include <ebbtide/hooks/saved_tensor.h>
#include <ebbtide/hooks/scope.h>

#include <ATen/SavedTensorHooks.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/autograd/engine.h>
#include <torch/csrc/autograd/saved_variable_hooks.h>

#include <pthread.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

namespace ebbtide {
namespace {

using torch::autograd::Engine;
/// Torch counts references to nodes in one way up to 2.12, in another after it.
using NodePtr = decltype(torch::autograd::Edge::function);

std::atomic<bool> forked{false};

/// Under make_fx, which knows tensors by their identity: one that came back from a store would be a constant to it.
bool traced_by_proxies() {
  using c10::impl::TorchDispatchModeTLS;
  return TorchDispatchModeTLS::any_modes_set() &&
         TorchDispatchModeTLS::get_mode(c10::impl::TorchDispatchModeKey::PROXY).has_value();
}

/// The stores that were used, and what a fork under way holds of them. Leaked: forks come at any time.
struct ForkGuard {
  std::mutex mutex;
  std::vector<std::weak_ptr<StoreCore>> cores;
  std::vector<std::shared_ptr<StoreCore>> locked;

  static ForkGuard& instance() {
    static auto* guard = new ForkGuard;
    return *guard;
  }
  void before() {
    mutex.lock();
    for (const auto& weak : cores)
      if (auto core = weak.lock()) locked.push_back(std::move(core));
    for (const auto& core : locked) core->lock_for_fork();
  }
  void after_in_parent() {
    for (const auto& core : locked) core->unlock_in_parent();
    const auto last_references = std::move(locked);
    locked.clear();
    mutex.unlock();
  }
  void after_in_child() {
    for (const auto& core : locked) core->unlock_in_child();
    new auto(std::move(locked));  // what it holds has threads in the parent only: never ended here
    mutex.unlock();
    forked = true;
  }
};

class StoreEngine final : public Engine {
 public:
  explicit StoreEngine(Engine& wrapped) : wrapped_(wrapped) {}

  torch::autograd::variable_list execute(const torch::autograd::edge_list& roots,
                                         const torch::autograd::variable_list& inputs, bool keep_graph,
                                         bool create_graph, bool accumulate_grad,
                                         const torch::autograd::edge_list& outputs) override {
    return wrapped_.execute(roots, inputs, keep_graph, create_graph, accumulate_grad, outputs);
  }
  c10::intrusive_ptr<at::ivalue::Future> execute_with_graph_task(
      const std::shared_ptr<torch::autograd::GraphTask>& graph_task, NodePtr graph_root,
      torch::autograd::InputBuffer&& input_buffer) override {
    return wrapped_.execute_with_graph_task(graph_task, std::move(graph_root), std::move(input_buffer));
  }
  std::unique_ptr<torch::autograd::AnomalyMetadata> make_anomaly_metadata() override {
    return wrapped_.make_anomaly_metadata();
  }

  std::unique_ptr<torch::autograd::SavedVariableHooks> get_default_saved_variable_hooks() override {
    const OnThisThread& here = OnThisThread::get();
    Scope* scope = here.scope;
    if (HookSource* source = here.source;
        source != nullptr && source->comes_before(scope) && (!in_forked_child() || source->takes() == nullptr))
      return hooks_of_source(*source);
    if (scope == nullptr) scope = CarriedScope::current();
    if (scope == nullptr || in_forked_child() || !scope->core()->accepts_packs())
      return wrapped_.get_default_saved_variable_hooks();
    const auto& python = at::SavedTensorDefaultHooks::get_tls_state();
    if (python.is_tracing || traced_by_proxies()) {
      scope->core()->note_passed_through("while tracing", Bytes(0));
      return wrapped_.get_default_saved_variable_hooks();
    }
    if (python.stack.size() > scope->python_hooks_outside()) {
      auto hooks = wrapped_.get_default_saved_variable_hooks();
      if (hooks == nullptr) return nullptr;
      return std::make_unique<CountedHooks>(std::move(hooks), scope->core(), "Python hooks inside the scope");
    }
    return SavedTensor::make(*scope);
  }

 private:
  std::unique_ptr<torch::autograd::SavedVariableHooks> hooks_of_source(HookSource& source) {
    const auto& python = at::SavedTensorDefaultHooks::get_tls_state();
    if (python.is_tracing) return wrapped_.get_default_saved_variable_hooks();
    if (python.stack.size() <= source.python_hooks_outside()) return source.make();
    auto hooks = wrapped_.get_default_saved_variable_hooks();
    const auto store = source.takes();
    if (hooks == nullptr || store == nullptr) return hooks;
    return std::make_unique<CountedHooks>(std::move(hooks), store, "Python hooks inside the scope");
  }

  Engine& wrapped_;
};

}  // namespace

void guard_forks(const std::shared_ptr<StoreCore>& core) {
  ForkGuard& guard = ForkGuard::instance();
  std::lock_guard lock(guard.mutex);
  std::erase_if(guard.cores, [](const auto& weak) { return weak.expired(); });
  for (const auto& weak : guard.cores)
    if (!weak.owner_before(core) && !core.owner_before(weak)) return;
  guard.cores.push_back(core);
}

bool in_forked_child() noexcept {
  return forked.load(std::memory_order_relaxed);
}

void install_engine() {
  static std::once_flag once;
  std::call_once(once, [] {
    static auto* engine = new StoreEngine(Engine::get_default_engine());
    pthread_atfork([] { ForkGuard::instance().before(); }, [] { ForkGuard::instance().after_in_parent(); },
                   [] { ForkGuard::instance().after_in_child(); });
    torch::autograd::set_default_engine_stub([]() -> Engine& { return *engine; });
  });
  // torch asks no engine for hooks before this was called (on any thread: it is a flag of the process).
  at::SavedTensorDefaultHooks::lazy_initialize();
}

}  // namespace ebbtide
