// What a step would take, and hold, with other budgets or on another machine than its profile was taken on.
#pragma once

#include <ebbtide/pinned_pool/bytes.h>
#include <ebbtide/pinned_pool/export.h>
#include <ebbtide/store/options.h>
#include <ebbtide/store/planned_record.h>
#include <ebbtide/store/saved_profile.h>

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace ebbtide {

/// Bytes a second. None: as the profile's store measured.
struct Speeds {
  std::optional<double> link_bandwidth;  ///< each way, alone; both at once they lose as much as was measured
  std::optional<double> disk_write, disk_read;
};

/// Sets the speed called `name` from text: a size, "/s" after it or not.
/// Errors: ConfigError naming the speed, the value and what is accepted.
EBBTIDE_API void set_speed(Speeds& speeds, std::string_view name, std::string_view value);

struct WhatIf {
  struct OnDevice {
    std::string name;
    Bytes saved;
    Bytes budget;
    Bytes peak;
    Bytes over;  ///< what has nowhere to go: with such a budget a store raises OutOfBudget, or keeps it
  };
  std::vector<OnDevice> devices;  ///< that save anything
  Bytes host_peak;                ///< of accelerators' tensors in host memory
  Bytes spill_peak;
  double seconds = 0;  ///< predicted
  double compute_s = 0;
  double stall_s = 0, recompute_s = 0, copying_s = 0;  ///< what it takes more
  double lower_bound_s = 0;                            ///< no way to treat these records takes less
  std::vector<PlannedRecord> records;                  ///< in order of packing
};

/// The plan that a store with these options would make of this profile. What options do not say is as the profile's
/// store had it, and without limit where that is not known; a device_budget that nobody gave is all that is saved. The
/// environment has no say. A speed that is given makes a disk where the profile knows none, and of its two speeds one
/// stands for both.
/// Errors: ConfigError.
EBBTIDE_API WhatIf what_if(const SavedProfile& saved, const Options& options, const Speeds& speeds = {});

}  // namespace ebbtide
