#include <ebbtide/hooks/carried_scope.h>

#include <ATen/SavedTensorHooks.h>
#include <c10/util/ThreadLocalDebugInfo.h>

#include <map>
#include <mutex>
#include <string_view>
#include <thread>
#include <type_traits>
#include <utility>

namespace ebbtide {
namespace {

constexpr std::string_view kName = "EBBTIDE_SCOPE";

/// Kinds are told apart by the address of their name; in torch's older versions by a number, of which it looks for none
/// but its own.
template <class Kind>
constexpr Kind kind_of_ours() {
  if constexpr (std::is_enum_v<Kind>)
    return static_cast<Kind>(0xEB);
  else
    return Kind(&kName);
}
constexpr auto kKind = kind_of_ours<c10::DebugInfoKind>();

}  // namespace

class CarriedScope::Carried : public c10::DebugInfoBase {
 public:
  explicit Carried(std::shared_ptr<StoreCore> core) : core_(std::move(core)) {}

  /// A scope is for one thread, so each has its own, and a pass with it.
  Scope* of_this_thread() {
    const std::lock_guard lock(mutex_);
    std::unique_ptr<Scope>& scope = scopes_[std::this_thread::get_id()];
    if (!scope && core_->accepts_packs()) scope = Scope::detached(core_);
    return scope.get();
  }
  std::map<std::thread::id, std::unique_ptr<Scope>> take() {
    const std::lock_guard lock(mutex_);
    return std::move(scopes_);
  }

 private:
  const std::shared_ptr<StoreCore> core_;
  std::mutex mutex_;
  std::map<std::thread::id, std::unique_ptr<Scope>> scopes_;  // guarded by mutex_
};

class CarriedScope::Guard {
 public:
  explicit Guard(std::shared_ptr<Carried> carried) : guard_(kKind, std::move(carried)) {}

 private:
  c10::DebugInfoGuard guard_;
};

CarriedScope::CarriedScope(Scope* scope) {
  if (scope == nullptr) return;
  if (at::SavedTensorDefaultHooks::get_tls_state().stack.size() > scope->python_hooks_outside()) return;
  carried_ = std::make_shared<Carried>(scope->core());
  guard_ = std::make_unique<Guard>(carried_);
}

CarriedScope::~CarriedScope() = default;

void CarriedScope::leave() {
  if (!carried_) return;
  for (auto& [thread, scope] : carried_->take())
    if (scope) scope->leave();
}

Scope* CarriedScope::current() {
  auto* carried = static_cast<Carried*>(c10::ThreadLocalDebugInfo::get(kKind));
  return carried != nullptr ? carried->of_this_thread() : nullptr;
}

}  // namespace ebbtide
