// What a redo runs under, whatever the thread that asks for it is in.
#pragma once

#include <ebbtide/hooks/arithmetic.h>

#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/DispatchKeySet.h>
#include <c10/core/GradMode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <optional>
#include <utility>

namespace ebbtide {

/// No autograd, no autocast (what a forward cast was cast by ops that have recipes of their own), no Python modes, and
/// the arithmetic that the forward had.
class RedoEnvironment {
 public:
  explicit RedoEnvironment(c10::Device device, const Arithmetic& arithmetic = Arithmetic())
      : outer_(std::exchange(innermost_, this)), device_(device) {
    arithmetic.set();
  }
  ~RedoEnvironment() {
    before_.set();
    innermost_ = outer_;
  }
  RedoEnvironment(const RedoEnvironment&) = delete;
  RedoEnvironment& operator=(const RedoEnvironment&) = delete;

  /// While it lives, what is run is not run in the environment of the redo that asks for it, if one does: a region's
  /// function runs as it ran first, with autograd.
  class Outside {
   public:
    Outside() : redo_(std::exchange(innermost_, nullptr)) {
      if (redo_ != nullptr) keys_.emplace(redo_->keys_);
    }
    ~Outside() { innermost_ = redo_; }
    Outside(const Outside&) = delete;
    Outside& operator=(const Outside&) = delete;

   private:
    const RedoEnvironment* const redo_;
    std::optional<c10::impl::ForceDispatchKeyGuard> keys_;
  };

 private:
  inline static thread_local const RedoEnvironment* innermost_ = nullptr;

  static constexpr c10::DispatchKeySet kOff =
      c10::autocast_dispatch_keyset |
      c10::DispatchKeySet({c10::DispatchKey::Python, c10::DispatchKey::PythonTLSSnapshot});

  const RedoEnvironment* const outer_;
  const c10::impl::LocalDispatchKeySet keys_ =
      outer_ != nullptr ? outer_->keys_ : c10::impl::tls_local_dispatch_key_set();
  const at::NoGradGuard no_grad_;
  const at::AutoDispatchBelowAutograd below_autograd_;
  const c10::impl::ExcludeDispatchKeyGuard off_{kOff};
  const c10::OptionalDeviceGuard device_;
  const Arithmetic before_;
};

}  // namespace ebbtide
