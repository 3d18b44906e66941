// Telling a store of a module's parameters and buffers.
#pragma once

#include <ebbtide/pinned_pool/export.h>
#include <ebbtide/store/store.h>

#include <ATen/core/Tensor.h>

#include <span>
#include <vector>

namespace torch::nn {
class Module;
}

namespace ebbtide {

/// A tensor that never moves, nor any view of its storage.
EBBTIDE_API void attach_tensor(Store& store, const at::Tensor& tensor);

/// Those of `tensors` that a store was not told of and could be: they have memory of their own, and no history, with which
/// they would be results of one step.
EBBTIDE_API std::vector<at::Tensor> not_attached(const Store& store, std::span<const at::Tensor> tensors);

/// The weight of a layer norm, which was attached: torch keeps the eps of an op that has run nowhere. Said again when the
/// module's eps changes.
EBBTIDE_API void attach_layer_norm(Store& store, const at::Tensor& weight, double eps);

/// Who attached the model calls before_parameters_change() whenever its parameters are about to change between a forward
/// and its backward, as an optimizer's step may do: then recipes may read them again, see ParameterTrust.
EBBTIDE_API void announce_parameter_changes(StoreCore& core);
enum class ChangedBy { kOptimizer, kOther };
/// May wait for room. Errors: SpillError, CorruptTensor, OutOfBudget.
EBBTIDE_API void before_parameters_change(StoreCore& core, std::span<const at::Tensor> parameters, ChangedBy who);

/// All parameters and buffers of a module and its submodules. What `store.attach(*net)` calls. Modules of C++ have no
/// hooks around their forwards, so nothing here can tell which of them saves a tensor: a Region in its forward can.
EBBTIDE_API void attach_module(Store& store, const torch::nn::Module& module);

}  // namespace ebbtide
