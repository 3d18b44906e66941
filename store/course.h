// How passes of one kind are treated: a plan a device, and what the plans were made of.
#pragma once

#include <ebbtide/pinned_pool/export.h>
#include <ebbtide/store/machine.h>
#include <ebbtide/store/plan.h>
#include <ebbtide/store/planned_record.h>
#include <ebbtide/store/profile.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace ebbtide {

/// A pure value.
struct Course {
  uint64_t kind = 0;               ///< PassLog::prefix() at the end of such a pass
  std::vector<uint64_t> prefixes;  ///< PassLog::prefix() after each pack
  Profile profile;
  std::vector<Conditions> on;  ///< that the plans are for, by the devices' numbers
  std::vector<Plan> plans;     ///< by the devices' numbers; of each, the actions of its own records count
  double predicted_s = 0;
  double lower_bound_s = 0;
  bool recomputes = false;  ///< some record

  const Plan& plan_of(size_t record) const noexcept { return plans[profile.records[record].device]; }
  Action action(size_t record) const noexcept { return plan_of(record).actions[record]; }
};

/// Plans for every device; `kind` and `prefixes` are left to the caller. `known`: of a profile of the same records; its
/// plans stay where others would gain little.
/// REQUIRES: !profile.invalid(); `on` has an entry for each device of the profile.
EBBTIDE_API Course make_course(Profile profile, std::vector<Conditions> on, bool recompute,
                               const Course* known = nullptr);

/// The same course, held within other budgets: of what it keeps, the oldest goes another way where they are too small.
/// What `on` does not know of the machine is as before, and so are devices that it does not name. Where it has no budget
/// for a disk there is none.
EBBTIDE_API Course held_within(const Course& course, const std::vector<Conditions>& on, bool recompute);

/// For people. `devices`: their names.
EBBTIDE_API std::vector<PlannedRecord> planned_records(const Course& course, std::span<const std::string> devices);

}  // namespace ebbtide
