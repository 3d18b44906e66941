#include <ebbtide/hooks/engine.h>
#include <ebbtide/hooks/on_this_thread.h>
#include <ebbtide/hooks/scope.h>
#include <ebbtide/store/error.h>

#include <ATen/SavedTensorHooks.h>

#include <stdexcept>
#include <utility>

namespace ebbtide {

std::shared_ptr<HooksOfStore> hooks_of(StoreCore& core) {
  return std::static_pointer_cast<HooksOfStore>(core.extension([&] { return std::make_shared<HooksOfStore>(core); }));
}

Scope::Scope(std::shared_ptr<StoreCore> core) : Scope(std::move(core), Where::kThisThread) {}

std::unique_ptr<Scope> Scope::detached(std::shared_ptr<StoreCore> core) {
  return std::unique_ptr<Scope>(new Scope(std::move(core), Where::kNowhere));
}

Scope::Scope(std::shared_ptr<StoreCore> core, Where where)
    : core_(std::move(core)),
      hooks_(hooks_of(*core_)),
      python_hooks_outside_(at::SavedTensorDefaultHooks::get_tls_state().stack.size()),
      where_(where) {
  if (core_->closed()) throw Error(ErrorCode::kClosed, "this ebbtide store is closed");
  install_engine();
  guard_forks(core_);
  if (where == Where::kNowhere) return;
  if (!at::SavedTensorDefaultHooks::is_enabled())
    core_->note_passed_through("saved-tensor hooks disabled by torch", Bytes(0));
  Scope*& innermost = OnThisThread::get().scope;
  for (Scope* scope = innermost; scope != nullptr; scope = scope->outer_)
    if (scope->core_ == core_) host_ = scope->host_ != nullptr ? scope->host_ : scope;
  if (host_ == nullptr && hooks_->recipes.trust().possible()) hooks_->parameters.take_down_versions();
  outer_ = innermost;
  innermost = this;
  if (hooks_->accelerators.serve_some()) carry();
}

Scope::~Scope() {
  try {
    leave();
  } catch (const std::exception&) {
    // Its tensors are kept. Over budget that is, and the next pack under the store says so.
  }
}

void Scope::leave() {
  if (!std::exchange(active_, false)) return;
  unlink();
  hooks_->recipes.cache().clear();
  const auto end = [&] {
    if (host_ == nullptr) core_->scope_ended(std::exchange(pass_, nullptr));
  };
  try {
    if (carried_) carried_->leave();
  } catch (...) {
    end();
    throw;
  }
  end();
}

void Scope::carry() {
  if (where_ == Where::kThisThread && !carried_) carried_ = std::make_unique<CarriedScope>(*this);
}

void Scope::unlink() noexcept {
  Scope*& innermost = OnThisThread::get().scope;
  for (Scope** link = &innermost; *link != nullptr; link = &(*link)->outer_) {
    if (*link == this) {
      *link = outer_;
      break;
    }
  }
  // Left before what it hosts: the next one hosts the rest.
  Scope* heir = nullptr;
  for (Scope* scope = innermost; scope != nullptr; scope = scope->outer_)
    if (scope->host_ == this) heir = scope;
  if (heir == nullptr) return;
  heir->host_ = nullptr;
  heir->pass_ = std::move(pass_);
  for (Scope* scope = innermost; scope != nullptr; scope = scope->outer_)
    if (scope->host_ == this) scope->host_ = heir;
}

Scope* Scope::current() noexcept {
  return OnThisThread::get().scope;
}

}  // namespace ebbtide
