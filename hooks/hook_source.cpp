#include <ebbtide/hooks/hook_source.h>

#include <ATen/SavedTensorHooks.h>

#include <utility>

namespace ebbtide {
namespace {

thread_local HookSource* innermost = nullptr;

}  // namespace

HookSource* HookSource::current() noexcept {
  return innermost;
}

HookSource::HookSource(std::shared_ptr<StoreCore> home)
    : outer_(innermost),
      scope_(Scope::current()),
      home_(home || outer_ == nullptr ? std::move(home) : outer_->home_),
      python_hooks_outside_(at::SavedTensorDefaultHooks::get_tls_state().stack.size()) {
  innermost = this;
}

HookSource::~HookSource() {
  innermost = outer_;
}

}  // namespace ebbtide
