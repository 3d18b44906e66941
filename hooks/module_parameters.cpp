#include <ebbtide/hooks/module_parameters.h>
#include <ebbtide/hooks/scope.h>

#include <torch/nn/module.h>
#include <torch/nn/modules/normalization.h>

namespace ebbtide {
namespace {

/// Module::modules() would throw for one on the stack.
void attach_layer_norms(Store& store, const torch::nn::Module& module) {
  const auto* norm = module.as<torch::nn::LayerNorm>();
  if (norm != nullptr && norm->weight.defined()) attach_layer_norm(store, norm->weight, norm->options.eps());
  for (const auto& child : module.children()) attach_layer_norms(store, *child);
}

}  // namespace

void attach_tensor(Store& store, const at::Tensor& tensor) {
  hooks_of(*store.core())->parameters.add(tensor);
}

std::vector<at::Tensor> not_attached(const Store& store, std::span<const at::Tensor> tensors) {
  const ParameterRegistry& known = hooks_of(*store.core())->parameters;
  std::vector<at::Tensor> found;
  for (const at::Tensor& tensor : tensors)
    if (tensor.has_storage() && tensor.is_leaf() && !known.contains(*tensor.storage().unsafeGetStorageImpl()))
      found.push_back(tensor);
  return found;
}

void attach_layer_norm(Store& store, const at::Tensor& weight, double eps) {
  hooks_of(*store.core())->parameters.note_layer_norm(weight, eps);
}

void announce_parameter_changes(StoreCore& core) {
  hooks_of(core)->recipes.trust().expect_announcements();
}

void before_parameters_change(StoreCore& core, std::span<const at::Tensor> parameters, ChangedBy who) {
  RecipeBook& recipes = hooks_of(core)->recipes;
  if (who == ChangedBy::kOptimizer && recipes.trust().step_announced()) core.learn_again();
  recipes.before_change(core, parameters);
}

void attach_module(Store& store, const torch::nn::Module& module) {
  for (const at::Tensor& tensor : module.parameters()) attach_tensor(store, tensor);
  for (const at::Tensor& tensor : module.buffers()) attach_tensor(store, tensor);
  attach_layer_norms(store, module);
}

}  // namespace ebbtide
