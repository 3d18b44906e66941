// The programs that mutants run under: all that a user may do, in an order that a seed decides.
#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <vector>

namespace ebbtide::mutants {

struct Outcome {
  bool executed = false;         ///< what was left out would have put things in order
  std::set<std::string> caught;  ///< races, and misuse of the device
};

/// Trainings over the store. `program`: "store", on a pretend accelerator and with some CPU tensors; "cuda store", the
/// same through CudaDevice, over a pretend driver; "host store", with CPU tensors alone.
Outcome run_store(const std::string& program, const std::string& left_out, uint64_t seed);

/// "lanes", "cuda lanes": two lanes, and an owner who withdraws jobs, forgets them, and lets lanes die.
Outcome run_lanes(const std::string& program, const std::string& left_out, uint64_t seed);

/// "link": measures one, with memory that others had and will have.
Outcome run_link(const std::string& left_out, uint64_t seed);

}  // namespace ebbtide::mutants
