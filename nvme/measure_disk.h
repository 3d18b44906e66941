// How fast a spill tier is, before anything is spilled.
#pragma once

#include <ebbtide/nvme/spill_tier.h>
#include <ebbtide/pinned_pool/result.h>

#include <chrono>

namespace ebbtide {

/// Bytes a second.
struct DiskSpeed {
  double write = 0;
  double read = 0;
};

/// Writes items of 4 MiB to the tier, eight at once, for that long, and then reads them; at most 512 MiB of them are there
/// at a time, and none afterwards. What the files' first use costs is in it.
/// REQUIRES: nobody else uses the tier.
/// Threads: any. Waits for the disk.
/// Errors: the tier's; kOverCapacity where there is no memory to write from.
Result<DiskSpeed> measure_disk(SpillTier& tier, std::chrono::nanoseconds each_way);

}  // namespace ebbtide
