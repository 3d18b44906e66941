// Who supplies saved-tensor hooks on this thread before a scope does: regions that run for the first time, or again.
#pragma once

#include <ebbtide/hooks/scope.h>
#include <ebbtide/store/store_core.h>

#include <torch/csrc/autograd/saved_variable_hooks.h>

#include <cstddef>
#include <memory>

namespace ebbtide {

/// Threads: made, used and destroyed on one thread, last made first.
class HookSource {
 public:
  HookSource(const HookSource&) = delete;
  HookSource& operator=(const HookSource&) = delete;

  /// The innermost on this thread; null where there is none.
  static HookSource* current() noexcept;

  /// Hooks for one tensor that is saved now.
  virtual std::unique_ptr<torch::autograd::SavedVariableHooks> make() = 0;

  /// Whether it comes before `scope`, the innermost of this thread: not where that was entered inside, unless it is of the
  /// region's own store (a part of the model that is attached too).
  bool comes_before(const Scope* scope) const noexcept {
    return scope == scope_ || scope == nullptr || scope->core() == home_;
  }
  /// How many Python hooks were there when it began: those pushed later are inside and win.
  size_t python_hooks_outside() const noexcept { return python_hooks_outside_; }
  /// The store that takes what is saved; null for none.
  virtual std::shared_ptr<StoreCore> takes() const noexcept = 0;

 protected:
  /// `home`: of the region; null for none.
  explicit HookSource(std::shared_ptr<StoreCore> home);
  virtual ~HookSource();

 private:
  HookSource* const outer_;
  const Scope* const scope_;
  const std::shared_ptr<StoreCore> home_;
  const size_t python_hooks_outside_;
};

}  // namespace ebbtide
