#include <ebbtide/hooks/engine.h>
#include <ebbtide/hooks/saved_tensor.h>
#include <ebbtide/hooks/scope.h>

#include <ATen/SavedTensorHooks.h>
#include <torch/csrc/autograd/engine.h>
#include <torch/csrc/autograd/saved_variable_hooks.h>

#include <pthread.h>

#include <atomic>
#include <memory>
#include <mutex>

namespace ebbtide {
namespace {

using torch::autograd::Engine;

std::atomic<bool> forked{false};

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
      const std::shared_ptr<torch::autograd::GraphTask>& graph_task, std::shared_ptr<torch::autograd::Node> graph_root,
      torch::autograd::InputBuffer&& input_buffer) override {
    return wrapped_.execute_with_graph_task(graph_task, std::move(graph_root), std::move(input_buffer));
  }
  std::unique_ptr<torch::autograd::AnomalyMetadata> make_anomaly_metadata() override {
    return wrapped_.make_anomaly_metadata();
  }

  std::unique_ptr<torch::autograd::SavedVariableHooks> get_default_saved_variable_hooks() override {
    Scope* scope = Scope::current();
    if (scope == nullptr || forked.load(std::memory_order_relaxed) || !scope->core()->accepts_packs())
      return wrapped_.get_default_saved_variable_hooks();
    const auto& python = at::SavedTensorDefaultHooks::get_tls_state();
    if (python.is_tracing) {
      scope->core()->note_passed_through("while tracing", Bytes(0));
      return wrapped_.get_default_saved_variable_hooks();
    }
    if (python.stack.size() > scope->python_hooks_outside()) {
      scope->core()->note_passed_through("Python hooks inside the scope", Bytes(0));
      return wrapped_.get_default_saved_variable_hooks();
    }
    return std::make_unique<SavedTensor>(*scope);
  }

 private:
  Engine& wrapped_;
};

}  // namespace

void install_engine() {
  static std::once_flag once;
  std::call_once(once, [] {
    static auto* engine = new StoreEngine(Engine::get_default_engine());
    pthread_atfork(nullptr, nullptr, [] { forked = true; });
    torch::autograd::set_default_engine_stub([]() -> Engine& { return *engine; });
  });
  // torch asks no engine for hooks before this was called (on any thread: it is a flag of the process).
  at::SavedTensorDefaultHooks::lazy_initialize();
}

}  // namespace ebbtide
