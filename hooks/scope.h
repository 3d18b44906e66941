// Which store serves the forward that runs on this thread.
#pragma once

#include <ebbtide/hooks/accelerators.h>
#include <ebbtide/hooks/carried_scope.h>
#include <ebbtide/hooks/parameter_registry.h>
#include <ebbtide/hooks/recipe_book.h>
#include <ebbtide/pinned_pool/export.h>
#include <ebbtide/store/pass.h>
#include <ebbtide/store/store_core.h>
#include <ebbtide/transfer/block_cache.h>

#include <cstddef>
#include <memory>

namespace ebbtide {

/// What the hooks keep for each store; its core owns it.
struct HooksOfStore {
  explicit HooksOfStore(StoreCore& core) : recipes(core, parameters) {}

  ParameterRegistry parameters;  ///< that the store was told of
  Accelerators accelerators;
  RecipeBook recipes;
  SharedBlockCache saved_tensors;  ///< a SavedTensor each
  SharedBlockCache storages;       ///< a TorchStorage each
};
EBBTIDE_API std::shared_ptr<HooksOfStore> hooks_of(StoreCore& core);

/// One scope that was entered: packs on its thread go to its store until it is left. Scopes of one store on one thread
/// nest and share the outermost's pass.
///
/// Lifetime: records and hooks outlive it.
/// Threads: entered, used and left on one thread; scopes may be left in any order (Python generators do).
class EBBTIDE_API Scope {
 public:
  /// Errors: Error (kClosed).
  explicit Scope(std::shared_ptr<StoreCore> core);
  /// One that no thread is in: only who holds it packs into it (Python's own saved_tensors_hooks).
  static std::unique_ptr<Scope> detached(std::shared_ptr<StoreCore> core);
  ~Scope();  ///< as leave(), but what cannot leave for lack of room is kept in silence
  Scope(const Scope&) = delete;
  Scope& operator=(const Scope&) = delete;

  /// Ends the scope: what it saved may leave. May wait for room.
  /// Errors: OutOfBudget; the scope is over all the same. Idempotent.
  void leave();

  /// The innermost on this thread; null where there is none.
  static Scope* current() noexcept;

  const std::shared_ptr<StoreCore>& core() const noexcept { return core_; }
  HooksOfStore& hooks() const noexcept { return *hooks_; }
  /// The pass that packs go to; opened by the first.
  std::shared_ptr<Pass>& pass() noexcept { return host_ != nullptr ? host_->pass_ : pass_; }
  /// What backwards that its thread calls save on the engine's threads is its store's too, from the first call on.
  /// REQUIRES: on its thread. Of a detached one nothing is carried.
  void carry();
  /// How many Python hooks were there when it was entered: those pushed later are inside and win.
  size_t python_hooks_outside() const noexcept { return python_hooks_outside_; }

 private:
  enum class Where { kThisThread, kNowhere };
  Scope(std::shared_ptr<StoreCore> core, Where where);
  void unlink() noexcept;

  std::shared_ptr<StoreCore> core_;
  std::shared_ptr<HooksOfStore> hooks_;
  std::shared_ptr<Pass> pass_;
  size_t python_hooks_outside_;
  Scope* outer_ = nullptr;
  Scope* host_ = nullptr;  // the outermost of the same store on this thread, if this is not it
  const Where where_;
  std::unique_ptr<CarriedScope> carried_;
  bool active_ = true;
};

}  // namespace ebbtide
