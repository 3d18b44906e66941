// Somebody else's saved-tensor hooks, which win over the store's: what goes to them is counted.
#pragma once

#include <ebbtide/hooks/pass_through.h>
#include <ebbtide/store/store_core.h>

#include <torch/csrc/autograd/saved_variable_hooks.h>

#include <memory>
#include <optional>
#include <utility>

namespace ebbtide {

/// Notes the tensor's bytes as passed through, and leaves all else to the hooks that it wraps. When torch asks for hooks
/// it does not say for which tensor.
/// Threads, lifetime: those of what it wraps; the core is needed for the pack alone.
class CountedHooks final : public torch::autograd::SavedVariableHooks {
 public:
  /// `reason`: a literal.
  CountedHooks(std::unique_ptr<torch::autograd::SavedVariableHooks> wrapped, std::shared_ptr<StoreCore> core,
               const char* reason)
      : wrapped_(std::move(wrapped)), core_(std::move(core)), reason_(reason) {}

  void call_pack_hook(const at::Tensor& tensor) override {
    std::exchange(core_, nullptr)->note_passed_through(reason_, storage_footprint(tensor));
    wrapped_->call_pack_hook(tensor);
  }
  at::Tensor call_unpack_hook() override { return wrapped_->call_unpack_hook(); }
  std::optional<std::pair<c10::SafePyObject, c10::SafePyObject>> retrieve_unpack_hook_data() const override {
    return wrapped_->retrieve_unpack_hook_data();
  }
  /// Newer torches ask this too; for the others it overrides nothing.
  std::optional<c10::SafePyObject> retrieve_unpack_hook() const {
    return [](const auto& hooks) -> std::optional<c10::SafePyObject> {
      if constexpr (requires { hooks.retrieve_unpack_hook(); })
        return hooks.retrieve_unpack_hook();
      else
        return std::nullopt;
    }(*wrapped_);
  }

 private:
  const std::unique_ptr<torch::autograd::SavedVariableHooks> wrapped_;
  std::shared_ptr<StoreCore> core_;
  const char* const reason_;
};

}  // namespace ebbtide
