#include "tests/support/sim_accelerator/operators.h"

#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <torch/library.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "tests/support/sim_accelerator/device_view.h"
#include "tests/support/sim_accelerator/sim_device.h"

namespace ebbtide::test {
namespace {

using torch::jit::Stack;

bool on_device(const at::Tensor& tensor) {
  return tensor.defined() && tensor.device().type() == kSimType;
}

void for_each_tensor(const c10::IValue& value, const std::function<void(const at::Tensor&)>& visit) {
  if (value.isTensor()) visit(value.toTensor());
  if (value.isTensorList())
    for (const at::Tensor& tensor : value.toTensorVector()) visit(tensor);
  if (value.isOptionalTensorList())
    for (const std::optional<at::Tensor>& tensor : value.toOptionalTensorVector()) visit(tensor.value_or(at::Tensor()));
}

c10::IValue map_tensors(const c10::IValue& value, const std::function<at::Tensor(const at::Tensor&)>& map) {
  if (value.isTensor()) return map(value.toTensor());
  if (value.isDevice()) return c10::Device(at::kCPU);
  if (value.isTensorList()) {
    c10::List<at::Tensor> mapped;
    for (const at::Tensor& tensor : value.toTensorVector()) mapped.push_back(map(tensor));
    return mapped;
  }
  if (value.isOptionalTensorList()) {
    c10::List<std::optional<at::Tensor>> mapped;
    for (const std::optional<at::Tensor>& tensor : value.toOptionalTensorVector())
      mapped.push_back(tensor ? std::optional(map(*tensor)) : std::nullopt);
    return mapped;
  }
  return value;
}

std::vector<at::Tensor> flatten(const Stack& values) {
  std::vector<at::Tensor> tensors;
  for (const c10::IValue& value : values)
    for_each_tensor(value, [&](const at::Tensor& tensor) { tensors.push_back(tensor); });
  return tensors;
}

at::Tensor zeros_like_on_cpu(const at::Tensor& tensor) {
  return at::empty_strided(tensor.sizes(), tensor.strides(), tensor.options().device(at::kCPU)).zero_();
}

/// Whatever the thread was doing when a task came up: neither autograd, nor autocast, nor Python's dispatch modes are the
/// task's.
struct NothingElse {
  const at::AutoDispatchBelowADInplaceOrView no_autograd;
  const c10::impl::ExcludeDispatchKeyGuard no_modes{
      c10::autocast_dispatch_keyset |
      c10::DispatchKeySet({c10::DispatchKey::Python, c10::DispatchKey::PythonTLSSnapshot})};
};

Stack call_cpu_kernel(const c10::OperatorHandle& op, Stack stack) {
  // Results depend on the number of threads, which torch sets a thread.
  [[maybe_unused]] static thread_local const bool alone = (at::set_num_threads(1), true);
  const NothingElse guard;
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), &stack);
  return stack;
}

/// When an operator reads its inputs.
enum class Reads {
  kInItsTask,
  kNothing,    ///< random numbers: the rehearsal drew them
  kNow,        ///< random numbers that depend on inputs: drawn in the order of the calls, behind the program's back
  kHostWaits,  ///< the host needs to know the result, or its shape
};

/// One call of an operator.
class DeviceCall {
 public:
  DeviceCall(const c10::OperatorHandle& op, Stack arguments)
      : op_(op), name_(op.schema().name()), arguments_(std::move(arguments)), device_(find_device()) {
    for (size_t i = 0; i < arguments_.size(); ++i) {
      for_each_tensor(arguments_[i], [&](const at::Tensor& tensor) {
        if (!on_device(tensor)) {
          TORCH_CHECK(!tensor.defined() || !written(i), "sim: ", name_, " would write a CPU tensor");
          return;
        }
        if (written(i)) writes_.push_back(span_of(tensor));
        if (!written(i) || !op_.schema().arguments()[i].is_out()) reads_.push_back(span_of(tensor));
        reads_other_ |= !written(i);
      });
    }
  }

  Stack run() {
    switch (when()) {
      case Reads::kInItsTask:
        prepare_outputs(rehearse());
        compute();
        return returned_;
      case Reads::kNothing: {
        Stack rehearsed = arguments_over(zeros_like_on_cpu);
        Stack drawn = call_cpu_kernel(op_, rehearsed);
        prepare_outputs(drawn);
        store(std::move(drawn), std::move(rehearsed));
        return returned_;
      }
      case Reads::kNow: {
        device_->chaos->run_all();
        Stack read = arguments_over([](const at::Tensor& tensor) { return view_on_cpu(tensor).clone(); });
        Stack drawn = call_cpu_kernel(op_, read);
        prepare_outputs(drawn);
        store(std::move(drawn), std::move(read));
        return returned_;
      }
      case Reads::kHostWaits: {
        Stack result = read_by_host();
        const bool tensors = std::ranges::all_of(
            result, [](const c10::IValue& value) { return value.isTensor() || value.isTensorList(); });
        if (!tensors) return result;
        prepare_outputs(result);
        store(std::move(result), {});
        return returned_;
      }
    }
    return {};
  }

 private:
  struct Output {
    size_t index;  // among the results, flattened
    at::Tensor tensor;
  };

  std::shared_ptr<SimDevice> find_device() const {
    std::optional<c10::Device> found;
    for (const c10::IValue& argument : arguments_) {
      for_each_tensor(argument, [&](const at::Tensor& tensor) {
        if (!on_device(tensor)) return;
        TORCH_CHECK(!found || *found == tensor.device(), "sim: ", name_, ": expected all tensors to be on the same ",
                    "device, but found at least two devices, ", *found, " and ", tensor.device());
        found = tensor.device();
      });
    }
    for (const c10::IValue& argument : arguments_)
      if (!found && argument.isDevice() && argument.toDevice().has_index()) found = argument.toDevice();
    return sim_device(found ? found->index() : current_sim_device());
  }

  StreamId stream() const { return chaos_stream(*device_, current_sim_stream(device_->index)); }

  bool written(size_t argument) const {
    const c10::AliasInfo* alias = op_.schema().arguments()[argument].alias_info();
    if (alias != nullptr && alias->isWrite()) return true;
    // Its schema does not say that it updates the running mean and variance.
    return name_ == "aten::native_batch_norm" && (argument == 3 || argument == 4);
  }

  Reads when() const {
    const auto& returns = op_.schema().returns();
    const bool host_result = std::ranges::any_of(returns, [](const c10::Argument& result) {
      return result.type()->kind() != c10::TypeKind::TensorType && result.type()->kind() != c10::TypeKind::ListType;
    });
    if (host_result || op_.hasTag(at::Tag::data_dependent_output) || op_.hasTag(at::Tag::dynamic_output_shape))
      return Reads::kHostWaits;
    if (op_.hasTag(at::Tag::nondeterministic_seeded)) return reads_other_ ? Reads::kNow : Reads::kNothing;
    return Reads::kInItsTask;
  }

  /// The arguments with each device tensor replaced. CPU tensors are read now, as on a GPU.
  Stack arguments_over(const std::function<at::Tensor(const at::Tensor&)>& replace) const {
    Stack mapped;
    for (size_t i = 0; i < arguments_.size(); ++i) {
      mapped.push_back(map_tensors(arguments_[i], [&](const at::Tensor& tensor) {
        if (!tensor.defined()) return tensor;
        // An out= tensor that comes empty is to be resized, which one over device memory cannot be.
        if (on_device(tensor))
          return written(i) && tensor.numel() == 0 ? at::empty({0}, tensor.options().device(at::kCPU))
                                                   : replace(tensor);
        at::Tensor copy = tensor.clone();
        if (tensor.unsafeGetTensorImpl()->is_wrapped_number())  // a Python or C++ number, which promotes otherwise
          copy.unsafeGetTensorImpl()->set_wrapped_number(true);
        return copy;
      }));
    }
    return mapped;
  }

  struct Rehearsed {
    Stack results;
    Stack arguments;
  };
  Rehearsed rehearse() const {
    Stack arguments = arguments_over(zeros_like_on_cpu);
    Stack results = call_cpu_kernel(op_, arguments);
    return {std::move(results), std::move(arguments)};
  }

  void prepare_outputs(const Rehearsed& rehearsed) {
    for (size_t i = 0; i < arguments_.size(); ++i) {
      if (!written(i) || !arguments_[i].isTensor() || !on_device(arguments_[i].toTensor())) continue;
      const at::Tensor& tensor = arguments_[i].toTensor();
      const auto sizes = rehearsed.arguments[i].toTensor().sizes();
      if (tensor.sizes() == sizes) continue;
      tensor.resize_(sizes);
      writes_.push_back(span_of(tensor));
    }
    prepare_outputs(rehearsed.results);
  }

  /// New tensors on the device for what is returned, and the arguments that are returned.
  void prepare_outputs(const Stack& results) {
    const auto& schema = op_.schema();
    size_t index = 0;
    for (size_t r = 0; r < results.size(); ++r) {
      const c10::AliasInfo* alias = schema.returns()[r].alias_info();
      TORCH_CHECK(alias == nullptr || alias->isWrite(), "sim: ", name_,
                  " returns a view and needs a kernel of its own");
      if (alias != nullptr) {
        for (size_t i = 0; i < arguments_.size(); ++i) {
          const c10::AliasInfo* of_argument = schema.arguments()[i].alias_info();
          if (of_argument != nullptr && *of_argument == *alias) returned_.push_back(arguments_[i]);
        }
        for_each_tensor(results[r], [&](const at::Tensor&) { ++index; });
        continue;
      }
      returned_.push_back(map_tensors(results[r], [&](const at::Tensor& result) {
        const size_t at = index++;
        if (!result.defined()) return result;
        const c10::Device device(kSimType, device_->index);
        at::Tensor output = at::empty_strided(result.sizes(), result.strides(), result.options().device(device));
        if (output.numel() == 0) return output;
        outputs_.push_back({at, view_on_cpu(output)});
        writes_.push_back(span_of(output));
        return output;
      }));
    }
  }

  static void fill(const std::vector<Output>& outputs, const Stack& results) {
    const std::vector<at::Tensor> flat = flatten(results);
    for (const auto& [index, memory] : outputs) {
      TORCH_CHECK(flat[index].sizes() == memory.sizes(), "the real result has another shape than the rehearsed one");
      memory.copy_(flat[index]);
    }
  }

  void launch(std::vector<Span> reads, std::function<void()> work) {
    checked(device_->chaos->launch(stream(), name_, std::move(reads), writes_,
                                   [faults = device_->faults, name = name_, work = std::move(work)] {
                                     const NothingElse guard;
                                     try {
                                       work();
                                     } catch (const std::exception& error) {
                                       faults->add(name + ": " + error.what());
                                     }
                                   }));
  }

  /// The task that computes.
  void compute() {
    launch(reads_, [op = op_, arguments = arguments_over(view_on_cpu), outputs = std::move(outputs_)] {
      fill(outputs, call_cpu_kernel(op, arguments));
    });
  }

  /// The task that stores what was computed before: new results, and arguments written in place.
  void store(Stack results, const Stack& computed_arguments) {
    std::vector<std::pair<at::Tensor, at::Tensor>> updates;
    for (size_t i = 0; i < computed_arguments.size(); ++i)
      if (written(i) && arguments_[i].isTensor() && on_device(arguments_[i].toTensor()))
        updates.emplace_back(view_on_cpu(arguments_[i].toTensor()), computed_arguments[i].toTensor());
    launch(reads_, [results = std::move(results), updates = std::move(updates), outputs = std::move(outputs_)] {
      for (const auto& [memory, value] : updates) memory.copy_(value);
      fill(outputs, results);
    });
  }

  /// The result, after the host has waited for the stream.
  Stack read_by_host() {
    const auto result = std::make_shared<Stack>();
    launch(reads_,
           [op = op_, arguments = arguments_over(view_on_cpu), result] { *result = call_cpu_kernel(op, arguments); });
    checked(device_->chaos->synchronize(checked(device_->chaos->record(stream()))));
    TORCH_CHECK(!result->empty(), "sim: ", name_, " failed: ", device_->faults->list().back());
    return std::move(*result);
  }

  const c10::OperatorHandle& op_;
  const std::string name_;
  const Stack arguments_;
  const std::shared_ptr<SimDevice> device_;
  std::vector<Span> reads_;
  std::vector<Span> writes_;
  bool reads_other_ = false;  // than what it overwrites
  std::vector<Output> outputs_;
  Stack returned_;
};

}  // namespace

void run_on_device(const c10::OperatorHandle& op, Stack* stack) {
  const size_t count = op.schema().arguments().size();
  Stack arguments = torch::jit::pop(*stack, count);
  for (c10::IValue& value : DeviceCall(op, std::move(arguments)).run()) stack->push_back(std::move(value));
}

void prefer_cpu_kernels() {
  // Leaked: its end would take the kernels back.
  auto* library = new torch::Library(torch::Library::IMPL, "aten", c10::DispatchKey::PrivateUse1, __FILE__, __LINE__);
  const auto view = [](const c10::Argument& result) {
    return result.alias_info() != nullptr && !result.alias_info()->isWrite();
  };
  for (const c10::OperatorName& name : c10::Dispatcher::singleton().getAllOpNames()) {
    const auto op = c10::Dispatcher::singleton().findOp(name);
    if (name.getNamespace() != "aten" || !op || !op->hasSchema()) continue;
    const bool composite = op->hasKernelForDispatchKey(c10::DispatchKey::CompositeExplicitAutograd) ||
                           op->hasKernelForDispatchKey(c10::DispatchKey::CompositeExplicitAutogradNonFunctional);
    if (!composite || !op->hasKernelForDispatchKey(c10::DispatchKey::CPU) ||
        op->hasKernelForDispatchKey(c10::DispatchKey::PrivateUse1) || std::ranges::any_of(op->schema().returns(), view))
      continue;
    library->impl(c10::toString(name).c_str(), torch::CppFunction::makeFromBoxedFunction<&run_on_device>());
  }
}

namespace {

TORCH_LIBRARY_IMPL(_, PrivateUse1, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_device>());
}

}  // namespace

}  // namespace ebbtide::test
