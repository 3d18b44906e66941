// The resident memory of this process, as the kernel counts it.
#pragma once

#include <ebbtide/pinned_pool/export.h>
#include <ebbtide/transfer/memory_meter.h>

namespace ebbtide {

/// VmRSS and VmHWM of /proc/self/status: programs and libraries, and what malloc keeps, count too.
class EBBTIDE_API ResidentSet final : public MemoryMeter {
 public:
  Result<MemoryUsage> usage() override;
  /// Source: proc(5), clear_refs. Where the kernel lacks it, the peak stays.
  void restart_peak() override;
};

}  // namespace ebbtide
