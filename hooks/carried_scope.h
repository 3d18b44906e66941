// A scope on the engine's threads, while a backward creates a graph.
#pragma once

#include <ebbtide/hooks/scope.h>

#include <memory>

namespace ebbtide {

/// The nodes of an accelerator run on threads of the engine's, which no scope was entered on. What a backward saves
/// there for another one belongs to the store all the same, if the backward was called inside a scope: torch carries
/// this along with its own thread-local state.
///
/// Threads:  made, left and destroyed on the thread that calls the backward, last made first.
/// Lifetime: a thread that is still busy with a node after another node threw may pack on, into passes of its own.
class CarriedScope {
 public:
  /// Carries none where `scope` is null, or Python's hooks win over it here.
  explicit CarriedScope(Scope* scope);
  ~CarriedScope();
  CarriedScope(const CarriedScope&) = delete;
  CarriedScope& operator=(const CarriedScope&) = delete;

  /// Ends the scopes of all threads. May wait for room. REQUIRES: the backward has returned. Errors: OutOfBudget.
  void leave();

  /// That of this thread, for what its current node saves; null where none is carried.
  static Scope* current();

 private:
  class Carried;
  class Guard;
  std::shared_ptr<Carried> carried_;
  std::unique_ptr<Guard> guard_;
};

}  // namespace ebbtide
