// What save_profile writes: a profile, and what the store knew of the machine, for what-ifs.
#pragma once

#include <ebbtide/pinned_pool/export.h>
#include <ebbtide/pinned_pool/result.h>
#include <ebbtide/store/machine.h>
#include <ebbtide/store/profile.h>

#include <string>
#include <string_view>
#include <vector>

namespace ebbtide {

/// A pure value.
struct SavedProfile {
  struct Device {
    std::string name;
    Conditions on;  ///< as they were when it was saved
  };
  Profile profile;
  std::vector<Device> devices;  ///< by their numbers, host memory first; empty where that is not known
  bool recompute = true;        ///< the store's option
};

/// As JSON.
EBBTIDE_API std::string to_json(const SavedProfile& saved);
/// Errors: kInvalid, naming what is wrong.
EBBTIDE_API Result<SavedProfile> profile_from_json(std::string_view text);
/// Errors: kInvalid, naming what is wrong; kIo.
EBBTIDE_API Result<SavedProfile> read_profile(const std::string& path);

}  // namespace ebbtide
