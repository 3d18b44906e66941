#include <ebbtide/hooks/carried_scope.h>
#include <ebbtide/hooks/scope.h>

#include <ATen/SavedTensorHooks.h>
#include <ATen/ThreadLocalPythonObjects.h>
#include <c10/core/SafePyObject.h>
#include <torch/csrc/autograd/graph_task.h>

#include <atomic>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <utility>

namespace ebbtide {
namespace {

using at::impl::ThreadLocalPythonObjects;

// Torch's older versions take none away. An explicit instantiation may name a private member, and a change of the member
// fails to compile.
template <auto kMember>
struct NamedObjectsOf {
  friend auto& named_objects_of(ThreadLocalPythonObjects& objects) { return objects.*kMember; }
};
template struct NamedObjectsOf<&ThreadLocalPythonObjects::obj_dict_>;
auto& named_objects_of(ThreadLocalPythonObjects& objects);

const std::string& name() {
  static const auto* name = new std::string("ebbtide scope");
  return *name;
}

}  // namespace

/// What torch carries along by name are Python's objects. This is none of them: its object is null.
class CarriedScope::Carried : public c10::SafePyObject {
 public:
  Carried(const Scope& scope, std::shared_ptr<Carried> outer)
      : SafePyObject(nullptr, nullptr),
        core_(scope.core()),
        python_hooks_outside_(scope.python_hooks_outside()),
        outer_(std::move(outer)) {}

  static std::shared_ptr<Carried> of_this_thread() {
    if (!ThreadLocalPythonObjects::contains(name())) return nullptr;
    return std::static_pointer_cast<Carried>(ThreadLocalPythonObjects::get(name()));
  }
  /// The innermost that goes on.
  static std::shared_ptr<Carried> current() {
    auto carried = of_this_thread();
    while (carried && carried->ended_) carried = carried->outer_;
    return carried;
  }

  /// A scope is for one thread, so each has its own, and a pass with it.
  Scope* scope() {
    if (at::SavedTensorDefaultHooks::get_tls_state().stack.size() > python_hooks_outside_) return nullptr;
    const std::lock_guard lock(mutex_);
    if (ended_) return nullptr;
    std::unique_ptr<Scope>& scope = scopes_[std::this_thread::get_id()];
    if (!scope && core_->accepts_packs()) scope = Scope::detached(core_);
    return scope.get();
  }
  std::map<std::thread::id, std::unique_ptr<Scope>> end() {
    const std::lock_guard lock(mutex_);
    ended_ = true;
    return std::move(scopes_);
  }

 private:
  const std::shared_ptr<StoreCore> core_;
  const size_t python_hooks_outside_;
  const std::shared_ptr<Carried> outer_;
  std::atomic<bool> ended_{false};
  std::mutex mutex_;
  std::map<std::thread::id, std::unique_ptr<Scope>> scopes_;  // guarded by mutex_
};

CarriedScope::CarriedScope(const Scope& scope) : carried_(std::make_shared<Carried>(scope, Carried::current())) {
  ThreadLocalPythonObjects::set(name(), carried_);
}

CarriedScope::~CarriedScope() = default;

void CarriedScope::leave() {
  auto scopes = carried_->end();
  if (Carried::of_this_thread() == carried_) {
    if (auto outer = Carried::current())
      ThreadLocalPythonObjects::set(name(), std::move(outer));
    else  // an empty one costs its threads nothing
      named_objects_of(const_cast<ThreadLocalPythonObjects&>(ThreadLocalPythonObjects::get_state())).erase(name());
  }
  for (auto& [thread, scope] : scopes)
    if (scope) scope->leave();
}

Scope* CarriedScope::current() {
  if (torch::autograd::get_current_graph_task_id() == -1) return nullptr;
  const auto carried = Carried::current();
  return carried ? carried->scope() : nullptr;
}

}  // namespace ebbtide
