// What a process holds of a device's memory, and the most that it held.
#pragma once

#include <ebbtide/pinned_pool/bytes.h>
#include <ebbtide/pinned_pool/result.h>

#include <cstdint>

namespace ebbtide {

struct MemoryUsage {
  Bytes now;              ///< allocated
  Bytes spare;            ///< taken from the device, and free for allocations to come
  Bytes peak;             ///< the most since restart_peak(), or since the process began
  int64_t shortages = 0;  ///< how often an allocation found no room, at first or at all
};

/// Threads: any, never under a lock of the store: it may ask the framework.
class MemoryMeter {
 public:
  virtual ~MemoryMeter() = default;
  /// Errors: kUnsupported where nothing counts it; it must not throw.
  virtual Result<MemoryUsage> usage() = 0;
  /// The peak is that of now, for everybody in the process who reads it.
  virtual void restart_peak() = 0;
};

}  // namespace ebbtide
