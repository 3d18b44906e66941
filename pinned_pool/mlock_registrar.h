// Host memory that the kernel keeps in place, without any device.
#pragma once

#include <ebbtide/pinned_pool/host_registrar.h>

namespace ebbtide {

/// Pins with mlock(2): never swapped out, though a device's driver still has to stage its copies.
/// Threads: any.
class MlockRegistrar final : public HostRegistrar {
 public:
  /// Errors: kOverCapacity over RLIMIT_MEMLOCK (with the limit), kUnsupported where mlock is forbidden.
  Status pin(void* data, size_t bytes) noexcept override;
  void unpin(void* data, size_t bytes) noexcept override;
};

}  // namespace ebbtide
