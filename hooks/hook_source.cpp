#include <ebbtide/hooks/hook_source.h>
#include <ebbtide/hooks/on_this_thread.h>

#include <ATen/SavedTensorHooks.h>

#include <utility>

namespace ebbtide {

HookSource* HookSource::current() noexcept {
  return OnThisThread::get().source;
}

HookSource::HookSource(std::shared_ptr<StoreCore> home)
    : outer_(OnThisThread::get().source),
      scope_(OnThisThread::get().scope),
      home_(home || outer_ == nullptr ? std::move(home) : outer_->home_),
      python_hooks_outside_(at::SavedTensorDefaultHooks::get_tls_state().stack.size()) {
  OnThisThread::get().source = this;
}

HookSource::~HookSource() {
  OnThisThread::get().source = outer_;
}

}  // namespace ebbtide
