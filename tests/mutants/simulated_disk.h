// The spill tier of a machine that does not exist: what SpillTier promises, by agents of the race detector.
#pragma once

#include <cstddef>

namespace ebbtide::mutants {

/// Begins or ends one transfer, of any tier. Returns whether there was one.
bool disk_turn();
/// All transfers end.
void run_disks_dry();

}  // namespace ebbtide::mutants
