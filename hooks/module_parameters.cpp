#include <ebbtide/hooks/module_parameters.h>
#include <ebbtide/hooks/scope.h>

#include <torch/nn/module.h>

namespace ebbtide {

void attach_tensor(Store& store, const at::Tensor& tensor) {
  hooks_of(*store.core())->parameters.add(tensor);
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
}

}  // namespace ebbtide
