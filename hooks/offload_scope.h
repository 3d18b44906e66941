// The scope of a forward, for C++.
#pragma once

#include <ebbtide/pinned_pool/export.h>
#include <ebbtide/store/store.h>

#include <memory>

namespace ebbtide {

class Scope;

/// While it lives, what autograd saves on this thread belongs to the store. The backward may run inside or after.
///
/// Threads: made and destroyed on one thread; other threads need scopes of their own.
/// Lifetime: records outlive it, and the store may die before it.
class EBBTIDE_API OffloadScope {
 public:
  /// Errors: Error (kClosed) on a closed store.
  explicit OffloadScope(Store& store);
  ~OffloadScope();

  /// As the destructor, but raises OutOfBudget where what was saved last fits nowhere.
  void leave();

 private:
  std::unique_ptr<Scope> scope_;
};

}  // namespace ebbtide
