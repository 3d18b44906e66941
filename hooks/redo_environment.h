// What a redo runs under, whatever the thread that asks for it is in.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/DispatchKeySet.h>
#include <c10/core/GradMode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

namespace ebbtide {

/// No autograd, no autocast (what a forward cast was cast by ops that have recipes of their own), no Python modes, and
/// as many threads as the forward had.
class RedoEnvironment {
 public:
  RedoEnvironment(c10::Device device, int threads) : device_(device), threads_before_(at::get_num_threads()) {
    if (device.is_cpu() && threads != threads_before_) at::set_num_threads(threads);
  }
  ~RedoEnvironment() {
    if (at::get_num_threads() != threads_before_) at::set_num_threads(threads_before_);
  }
  RedoEnvironment(const RedoEnvironment&) = delete;
  RedoEnvironment& operator=(const RedoEnvironment&) = delete;

 private:
  static constexpr c10::DispatchKeySet kOff =
      c10::autocast_dispatch_keyset |
      c10::DispatchKeySet({c10::DispatchKey::Python, c10::DispatchKey::PythonTLSSnapshot});

  const at::NoGradGuard no_grad_;
  const at::AutoDispatchBelowAutograd below_autograd_;
  const c10::impl::ExcludeDispatchKeyGuard off_{kOff};
  const c10::OptionalDeviceGuard device_;
  const int threads_before_;
};

}  // namespace ebbtide
