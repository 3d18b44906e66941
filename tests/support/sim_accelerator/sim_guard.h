// The pretend devices' streams, events and current device, as torch sees them.
#pragma once

#include <ATen/core/Generator.h>

namespace ebbtide::test {

/// Registers the device guard and the PrivateUse1 hooks. Once a process, before the first backward: the engine counts
/// the devices when it starts its threads.
void register_sim_guard();

/// While it lives the devices' random numbers are those of a generator of their own. Without one they are the CPU's, so that
/// models see the same ones there.
class SimGenerator {
 public:
  explicit SimGenerator(at::Generator own);
  ~SimGenerator();
  SimGenerator(const SimGenerator&) = delete;
  SimGenerator& operator=(const SimGenerator&) = delete;
};

}  // namespace ebbtide::test
