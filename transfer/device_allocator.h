// Where memory for what comes back to a device is taken from: the framework's own allocator.
#pragma once

#include <ebbtide/pinned_pool/bytes.h>
#include <ebbtide/pinned_pool/result.h>
#include <ebbtide/transfer/device.h>
#include <ebbtide/transfer/device_storage.h>
#include <ebbtide/transfer/memory_meter.h>

#include <memory>

namespace ebbtide {

/// Implemented over the framework's allocator, so that its snapshots, pools, graph capture and segments keep working.
/// Threads:  called on threads that unpack, never under a lock of the store.
/// Lifetime: outlives the device's last transfer; the store shares it.
class EBBTIDE_API DeviceAllocator : public MemoryMeter {
 public:
  /// Memory whose first byte lies at a multiple of kDeviceAlignment. Stream: for use on `stream`; given back there when
  /// the storage dies. Errors: kOverCapacity; it must not throw.
  virtual Result<std::shared_ptr<DeviceStorage>> allocate(Bytes bytes, StreamId stream) = 0;

  /// Of what this allocator has handed out, to all of the process.
  Result<MemoryUsage> usage() override {
    return Failure{FailureCode::kUnsupported, 0, "the framework's allocator does not say what it has handed out"};
  }
  void restart_peak() override {}
};

/// Kernels choose their code path by an address modulo this, so what comes back has its old one.
inline constexpr int64_t kDeviceAlignment = 512;

}  // namespace ebbtide
