// Which records a pass keeps, moves or makes again, so that it fits its budgets and takes the least time.
#pragma once

#include <ebbtide/pinned_pool/bytes.h>
#include <ebbtide/pinned_pool/export.h>
#include <ebbtide/store/machine.h>
#include <ebbtide/store/profile.h>
#include <ebbtide/store/simulator.h>

#include <cstdint>
#include <span>
#include <vector>

namespace ebbtide {

/// For people, in the report and in store.plan().
enum class Why : uint8_t {
  kElsewhere,      ///< kept: somebody else holds it too
  kStays,          ///< kept: no tier below can hold it
  kFits,           ///< kept: the budget has room for it
  kCheaperToMove,  ///< moved: its redo takes more time than its copies, most of which run beside the computation
  kNoRecipe,       ///< moved: there is no other way
  kHostFull,       ///< spilled: host memory has no room for it
  kCheaperToRedo,  ///< redone: takes less time than waiting for its copies, or for those that they would hold up
  kNoLowerTier,    ///< redone: it can go nowhere
};
EBBTIDE_API const char* to_string(Action action) noexcept;
EBBTIDE_API const char* to_string(Why why) noexcept;

struct Plan {
  std::vector<Action> actions;  ///< one a record of the profile
  std::vector<Why> why;
  /// Records that come back or are redone, in the order in which their memory is to be reserved.
  std::vector<uint32_t> return_order;
  Simulated predicted;
  double lower_bound_s = 0;    ///< no way to treat these records takes less
  double recompute_all_s = 0;  ///< if all that has a recipe was redone, and only the rest moved; for comparison
};

struct PlanOptions {
  uint32_t device = 0;
  bool recompute = true;
  /// Of the profile's, simulated in all: some 40 ns each on a core of 2020. 24 simulations are made in any case.
  int64_t most_steps = 120'000;
  /// A plan for a profile of the same records, to start from too; the new one is never slower than it.
  std::span<const Action> known = {};
};

/// Pure: the same for the same arguments. Records of other devices are kept.
/// REQUIRES: !profile.invalid().
EBBTIDE_API Plan plan(const Profile& profile, const Machine& machine, const Budgets& budgets,
                      const PlanOptions& options = {});

}  // namespace ebbtide
