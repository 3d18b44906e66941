// The operators that run_on_device cannot be: those that make tensors and views, copies between devices, and those that
// torch has for accelerators only.
#include <ATen/EmptyTensor.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/tanh.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_as_complex_native.h>
#include <ATen/ops/view_as_real_native.h>
#include <ATen/ops/view_native.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include <optional>
#include <tuple>

#include "tests/support/sim_accelerator/device_view.h"
#include "tests/support/sim_accelerator/operators.h"
#include "tests/support/sim_accelerator/sim_allocator.h"
#include "tests/support/sim_accelerator/sim_device.h"

namespace ebbtide::test {
namespace {

using torch::jit::Stack;

const c10::DispatchKeySet kKeys(c10::DispatchKey::PrivateUse1);

void run(const char* name, Stack* stack) {
  run_on_device(c10::Dispatcher::singleton().findSchemaOrThrow(name, ""), stack);
}

at::Tensor empty(at::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                 std::optional<at::Device> device, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  const c10::OptionalDeviceGuard guard(device);
  return at::detail::empty_generic(size, &sim_allocator(), kKeys, c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> dtype,
                         std::optional<at::Layout>, std::optional<at::Device> device, std::optional<bool>) {
  const c10::OptionalDeviceGuard guard(device);
  return at::detail::empty_strided_generic(size, stride, &sim_allocator(), kKeys, c10::dtype_or_default(dtype));
}

void wait_for(const SimDevice& device, StreamId stream) {
  checked(device.chaos->synchronize(checked(device.chaos->record(stream))));
}

/// The host's bytes are read now, as from pageable memory on a GPU.
void copy_to_device(const at::Tensor& from, const at::Tensor& to) {
  const std::shared_ptr<SimDevice> device = sim_device(to.device().index());
  checked(device->chaos->launch(chaos_stream(*device, current_sim_stream(device->index)), "copy from the CPU", {},
                                {span_of(to)}, [staged = from.clone(), memory = view_on_cpu(to)] {
                                  const at::AutoDispatchBelowADInplaceOrView no_autograd;
                                  memory.copy_(staged);
                                }));
}

/// The host waits for the stream.
at::Tensor copy_to_cpu(const at::Tensor& from) {
  const std::shared_ptr<SimDevice> device = sim_device(from.device().index());
  const StreamId stream = chaos_stream(*device, current_sim_stream(device->index));
  at::Tensor staged = at::empty_strided(from.sizes(), from.strides(), from.options().device(at::kCPU));
  checked(device->chaos->launch(stream, "copy to the CPU", {span_of(from)}, {}, [staged, memory = view_on_cpu(from)] {
    const at::AutoDispatchBelowADInplaceOrView no_autograd;
    staged.copy_(memory);
  }));
  wait_for(*device, stream);
  return staged;
}

/// What copy_, to and clone come down to.
at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool non_blocking) {
  if (to.numel() == 0) return to;
  if (from.is_cpu()) {
    copy_to_device(from, to);
  } else if (to.is_cpu()) {
    to.copy_(copy_to_cpu(from));
  } else if (from.device() != to.device()) {
    copy_to_device(copy_to_cpu(from), to);
    // Torch orders what follows after the source's stream alone, from which a GPU would write.
    const std::shared_ptr<SimDevice> device = sim_device(to.device().index());
    wait_for(*device, chaos_stream(*device, current_sim_stream(device->index)));
  } else {
    Stack stack{to, from, non_blocking};
    run("aten::copy_", &stack);
  }
  return to;
}

void record_stream(at::Tensor& tensor, at::Stream stream) {
  sim_allocator().recordStream(tensor.storage().data_ptr(), stream);
}

/// Not torch's for the CPU, which copies at once what a task is still to write.
const at::Tensor& resize_(const at::Tensor& self, at::IntArrayRef size, std::optional<at::MemoryFormat> format) {
  const size_t bytes =
      at::detail::computeStorageNbytesContiguous(size, self.itemsize(), static_cast<size_t>(self.storage_offset()));
  if (bytes > self.storage().nbytes()) at::detail::getPrivateUse1Hooks().resizePrivateUse1Bytes(self.storage(), bytes);
  self.unsafeGetTensorImpl()->set_sizes_contiguous(size);
  if (format) self.unsafeGetTensorImpl()->empty_tensor_restride(*format);
  return self;
}

at::Tensor& set_range(at::Tensor& self, at::Storage source, int64_t offset, at::IntArrayRef size,
                      at::IntArrayRef stride) {
  const auto begin = static_cast<size_t>(offset);
  const size_t bytes = stride.empty() ? at::detail::computeStorageNbytesContiguous(size, self.itemsize(), begin)
                                      : at::detail::computeStorageNbytes(size, stride, self.itemsize(), begin);
  TORCH_CHECK(bytes <= source.nbytes(), "sim: set_ does not make a storage longer");
  self.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(source));
  self.unsafeGetTensorImpl()->set_storage_offset(offset);
  if (stride.empty())
    self.unsafeGetTensorImpl()->set_sizes_contiguous(size);
  else
    self.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride, offset);
  return self;
}

/// Torch sends the convolutions of devices that it does not know here.
void convolution(const c10::OperatorHandle&, Stack* stack) {
  run("aten::convolution", stack);
}

/// As aten::convolution_backward, but for an argument: the sizes of the bias, after the weight.
void convolution_backward(const c10::OperatorHandle&, Stack* stack) {
  constexpr size_t kWeight = 2, kTransposed = 6, kGroups = 8, kMask = 9, kArguments = 10;
  const auto arguments = stack->end() - kArguments;
  const at::Tensor weight = arguments[kWeight].toTensor();
  const bool transposed = arguments[kTransposed].toBool();
  const int64_t channels = transposed ? weight.size(1) * arguments[kGroups].toInt() : weight.size(0);
  c10::IValue bias_sizes;
  if (arguments[kMask].toBoolList()[2]) bias_sizes = c10::List<int64_t>({channels});
  stack->insert(arguments + kWeight + 1, bias_sizes);
  run("aten::convolution_backward", stack);
}

/// The random numbers are drawn without looking at the input, so they need not wait for it.
std::tuple<at::Tensor, at::Tensor> native_dropout(const at::Tensor& input, double p, std::optional<bool> train) {
  if (input.numel() == 0 || !train.value_or(true))
    return {input.clone(), at::ones_like(input, input.options().dtype(at::kBool))};
  at::Tensor mask = at::empty_like(input, input.options().dtype(at::kBool));
  mask.bernoulli_(1 - p);
  const double scale = p == 1 ? 0 : 1 / (1 - p);
  return {input.mul(mask).mul_(scale), mask};
}

/// Torch's LSTM asks accelerators for a cell in one operator. The arithmetic is that of LSTMCell in
/// aten/src/ATen/native/RNN.cpp; `workspace` holds the four gates, activated.
std::tuple<at::Tensor, at::Tensor, at::Tensor> lstm_cell(const at::Tensor& input_gates, const at::Tensor& hidden_gates,
                                                         const at::Tensor& cx,
                                                         const std::optional<at::Tensor>& input_bias,
                                                         const std::optional<at::Tensor>& hidden_bias) {
  at::Tensor gates = input_gates + hidden_gates;
  if (input_bias && input_bias->defined()) gates = gates + *input_bias + *hidden_bias;
  const auto chunks = gates.chunk(4, 1);
  const at::Tensor in = at::sigmoid(chunks[0]);
  const at::Tensor forget = at::sigmoid(chunks[1]);
  const at::Tensor cell = at::tanh(chunks[2]);
  const at::Tensor out = at::sigmoid(chunks[3]);
  at::Tensor cy = forget * cx + in * cell;
  at::Tensor hy = out * at::tanh(cy);
  return {std::move(hy), std::move(cy), at::cat({in, forget, cell, out}, 1)};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> lstm_cell_backward(const std::optional<at::Tensor>& grad_hy,
                                                                  const std::optional<at::Tensor>& grad_cy,
                                                                  const at::Tensor& cx, const at::Tensor& cy,
                                                                  const at::Tensor& workspace, bool has_bias) {
  const auto gates = workspace.chunk(4, 1);
  const at::Tensor &in = gates[0], &forget = gates[1], &cell = gates[2], &out = gates[3];
  const auto or_zeros = [&](const std::optional<at::Tensor>& gradient) {
    return gradient && gradient->defined() ? *gradient : at::zeros_like(cx);
  };
  const at::Tensor tanh_cy = at::tanh(cy);
  const at::Tensor d_hy = or_zeros(grad_hy);
  const at::Tensor d_cy = d_hy * out * (1 - tanh_cy * tanh_cy) + or_zeros(grad_cy);
  at::Tensor d_gates = at::cat({d_cy * cell * in * (1 - in), d_cy * cx * forget * (1 - forget),
                                d_cy * in * (1 - cell * cell), d_hy * tanh_cy * out * (1 - out)},
                               1);
  at::Tensor d_bias = has_bias ? d_gates.sum(0) : at::Tensor();
  return {std::move(d_gates), d_cy * forget, std::move(d_bias)};
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) {
  library.impl("empty.memory_format", empty);
  library.impl("empty_strided", empty_strided);
  library.impl("_copy_from", copy_from);
  library.impl("as_strided", at::native::as_strided_tensorimpl);
  library.impl("view", at::native::view);
  library.impl("_reshape_alias", at::native::_reshape_alias);
  library.impl("unfold", at::native::unfold);
  library.impl("view_as_real", at::native::view_as_real);
  library.impl("view_as_complex", at::native::view_as_complex);
  library.impl("resize_", resize_);
  library.impl("set_.source_Tensor", at::native::set_tensor_);
  library.impl("set_.source_Storage", static_cast<at::Tensor& (*)(at::Tensor&, at::Storage)>(at::native::set_));
  library.impl("set_.source_Storage_storage_offset", set_range);
  library.impl("record_stream", record_stream);
  library.impl("convolution_overrideable", torch::CppFunction::makeFromBoxedFunction<&convolution>());
  library.impl("convolution_backward_overrideable", torch::CppFunction::makeFromBoxedFunction<&convolution_backward>());
  library.impl("native_dropout", native_dropout);
  library.impl("_thnn_fused_lstm_cell", lstm_cell);
  library.impl("_thnn_fused_lstm_cell_backward_impl", lstm_cell_backward);
}

// As for copy_: torch's fallback of these keys clones, which is a copy again, without end.
TORCH_LIBRARY_IMPL(aten, Conjugate, library) {
  library.impl("_copy_from", torch::CppFunction::makeFallthrough());
}
TORCH_LIBRARY_IMPL(aten, Negative, library) {
  library.impl("_copy_from", torch::CppFunction::makeFallthrough());
}

}  // namespace
}  // namespace ebbtide::test
