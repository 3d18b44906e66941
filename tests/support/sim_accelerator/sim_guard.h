// The pretend devices' streams, events and current device, as torch sees them.
#pragma once

namespace ebbtide::test {

/// Registers the device guard and the PrivateUse1 hooks. Once a process, before the first backward: the engine counts
/// the devices when it starts its threads.
void register_sim_guard();

}  // namespace ebbtide::test
