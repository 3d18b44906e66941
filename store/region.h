// A named part of a program, for the report, and what is asked for of all that is saved in it.
#pragma once

#include <ebbtide/pinned_pool/export.h>

#include <cstdint>
#include <string>
#include <string_view>

namespace ebbtide {

/// What becomes of the tensors that a region saves. All but kAuto override the rule and the plan, and the budget stays a
/// promise.
enum class Policy : uint8_t {
  kAuto,       ///< as the rule or the plan finds
  kKeep,       ///< they stay where they are while the budget has room
  kOffload,    ///< they leave the device at once; for CPU tensors, whose device tier is host memory, as kSpill
  kSpill,      ///< they leave for the disk at once; those of accelerators go by host memory, as host_budget asks
  kRecompute,  ///< what has a recipe is let go of at once, and made again; of the rest, as kAuto
};

/// Errors: ConfigError, which names what is accepted.
EBBTIDE_API Policy parse_policy(std::string_view text);

/// Lifetime: that of the program: records and statistics point to it. There is one a name and policy.
/// Threads: immutable.
struct RegionLabel {
  std::string name;
  Policy policy = Policy::kAuto;
  std::string redo;  ///< what is redone, in the report

  /// Errors: ConfigError for an empty name.
  static EBBTIDE_API const RegionLabel* of(std::string_view name, Policy policy);

  bool leaves_at_once() const noexcept { return policy == Policy::kOffload || policy == Policy::kSpill; }
};

}  // namespace ebbtide
