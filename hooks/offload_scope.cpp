#include <ebbtide/hooks/offload_scope.h>
#include <ebbtide/hooks/scope.h>

namespace ebbtide {

OffloadScope::OffloadScope(Store& store) : scope_(std::make_unique<Scope>(store.core())) {}
OffloadScope::~OffloadScope() = default;
void OffloadScope::leave() {
  scope_->leave();
}

}  // namespace ebbtide
