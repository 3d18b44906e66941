// One record of the plan in force, for people.
#pragma once

#include <ebbtide/pinned_pool/bytes.h>

#include <string>

namespace ebbtide {

struct PlannedRecord {
  Bytes bytes;         ///< in the memory of its device
  std::string op;      ///< that made it, as torch names its node; empty: a leaf, or unknown
  std::string region;  ///< empty: none
  std::string device;
  std::string action;  ///< "keep", "offload", "spill" or "recompute"
  std::string why;
};

}  // namespace ebbtide
