// A scope on the engine's threads.
#pragma once

#include <cstddef>
#include <memory>

namespace ebbtide {

class Scope;
class StoreCore;

/// The nodes of an accelerator run on threads of the engine's, which no scope was entered on. What a backward saves
/// there for another one belongs to the store all the same, if the backward was called inside a scope: torch carries
/// this along with its own thread-local state.
///
/// Threads:  made and left on the thread of the scope, in any order.
/// Lifetime: a thread that is still busy with a node after another node threw may pack on, into passes of its own.
class CarriedScope {
 public:
  /// From now on backwards that this thread calls carry `scope`'s store, where no Python hooks were pushed inside.
  explicit CarriedScope(const Scope& scope);
  ~CarriedScope();  ///< REQUIRES: leave() was called
  CarriedScope(const CarriedScope&) = delete;
  CarriedScope& operator=(const CarriedScope&) = delete;

  /// Ends it, and the scopes of all threads. May wait for room. REQUIRES: no backward is under way. Errors: OutOfBudget.
  void leave();

  /// That of this thread, for what its current node saves; null where none is carried.
  static Scope* current();

 private:
  class Carried;
  const std::shared_ptr<Carried> carried_;
};

}  // namespace ebbtide
