// The least time that a pass could take within its budgets, however its records are treated.
#pragma once

#include <ebbtide/pinned_pool/export.h>
#include <ebbtide/store/machine.h>
#include <ebbtide/store/profile.h>

#include <cstdint>

namespace ebbtide {

/// Seconds: the larger of two bounds, each of which lets any fraction of a record be redone.
///  - At every pack of the forward, what was packed and is not redone lies in the budget or has left by then.
///  - All that has left by the first unpack comes back after it.
/// A stall gives the copies more time, and costs as much: so the cheapest redos are worth their while until the next one
/// takes longer than the copy would.
/// REQUIRES: !profile.invalid().
EBBTIDE_API double lower_bound(const Profile& profile, const Machine& machine, const Budgets& budgets,
                               uint32_t device = 0, bool recompute = true);

}  // namespace ebbtide
