// What a saved tensor costs in C++: pack and unpack under Ebbtide, beside no hooks, identity hooks and copying hooks.
//
// A chain of sin: each op saves its input, so the forward holds one pack an op and the backward one unpack. `items` are
// ops; the time an item is the whole op, and the difference to no hooks is the hooks' price.
#include <benchmark/benchmark.h>
#include <ebbtide/ebbtide.h>
#include <torch/csrc/autograd/generated/Functions.h>
#include <torch/torch.h>

#include <chrono>
#include <optional>

namespace {

using torch::autograd::SavedVariableHooks;

constexpr int kOps = 200;
constexpr int64_t kSmall = 8;     // floats: under any store's min_bytes
constexpr int64_t kLarge = 1024;  // floats, 4 KiB: the smallest record

/// Gives back what it was given.
struct IdentityHooks : SavedVariableHooks {
  void call_pack_hook(const at::Tensor& tensor) override { tensor_ = tensor.detach(); }
  at::Tensor call_unpack_hook() override { return tensor_; }
  at::Tensor tensor_;
};

/// What torch's save_on_cpu does for CPU tensors: a copy out and a copy back.
struct CopyHooks : SavedVariableHooks {
  void call_pack_hook(const at::Tensor& tensor) override { tensor_ = tensor.detach().clone(); }
  at::Tensor call_unpack_hook() override { return tensor_.clone(); }
  at::Tensor tensor_;
};

/// LibTorch has no default hooks without an engine of one's own, so these are registered on the node, which is all that
/// such an engine does.
template <class Hooks>
void register_on_node(const at::Tensor& result) {
  auto* node = static_cast<torch::autograd::generated::SinBackward0*>(result.grad_fn().get());
  node->self_.register_hooks(std::make_unique<Hooks>());
}

void no_hooks(const at::Tensor&) {}

/// One chain forward and backward an iteration; the clock runs in the forward or in the backward.
void chain(benchmark::State& state, int64_t floats, ebbtide::Store* store, void (*after_op)(const at::Tensor&)) {
  const bool time_forward = state.range(0) == 0;
  at::set_num_threads(1);
  const at::Tensor x = at::ones({floats}).requires_grad_();
  for (auto _ : state) {
    const auto start = std::chrono::steady_clock::now();
    at::Tensor y = x;
    {
      std::optional<ebbtide::OffloadScope> scope;
      if (store) scope.emplace(*store);
      for (int op = 0; op < kOps; ++op) {
        y = y.sin();
        after_op(y);
      }
      if (scope) scope->leave();
    }
    const auto turned = std::chrono::steady_clock::now();
    y.sum().backward();
    const auto end = std::chrono::steady_clock::now();
    const std::chrono::duration<double> timed = time_forward ? turned - start : end - turned;
    state.SetIterationTime(timed.count());
  }
  state.SetItemsProcessed(state.iterations() * kOps);
}

ebbtide::Store roomy_store() {
  ebbtide::Options options;
  options.device_budget = ebbtide::GiB(64);
  options.min_bytes = ebbtide::KiB(4);
  return ebbtide::Store(options);
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  ebbtide::Store store = roomy_store();
  const auto add = [](const char* name, int64_t floats, ebbtide::Store* in, void (*after_op)(const at::Tensor&)) {
    benchmark::RegisterBenchmark(name, chain, floats, in, after_op)
        ->ArgName("backward")
        ->Arg(0)
        ->Arg(1)
        ->UseManualTime()
        ->Unit(benchmark::kMillisecond);
  };
  add("no_hooks", kSmall, nullptr, no_hooks);
  add("identity_hooks", kSmall, nullptr, register_on_node<IdentityHooks>);
  add("save_on_cpu", kSmall, nullptr, register_on_node<CopyHooks>);
  add("ebbtide_passed_through", kSmall, &store, no_hooks);
  add("no_hooks_4KiB", kLarge, nullptr, no_hooks);
  add("identity_hooks_4KiB", kLarge, nullptr, register_on_node<IdentityHooks>);
  add("save_on_cpu_4KiB", kLarge, nullptr, register_on_node<CopyHooks>);
  add("ebbtide_kept_4KiB", kLarge, &store, no_hooks);
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
