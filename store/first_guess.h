// Treatments for a planner to start from, made without a simulation.
#pragma once

#include <ebbtide/store/machine.h>
#include <ebbtide/store/profile.h>
#include <ebbtide/store/simulator.h>

#include <cstdint>
#include <limits>
#include <vector>

namespace ebbtide {

/// How a guess is made. Shares are of what the machine and the budgets offer.
struct GuessOptions {
  double room = 1;   ///< share of the device's budget that what stays may take
  double speed = 1;  ///< share of the link's speed
  /// A record is redone if that takes fewer seconds a byte than moving it: at most this times what its copy takes. A
  /// stall takes 1.
  double most_redo = 1;
  /// What takes less than this share is redone in any case.
  double always_redo = 0;
  double blur = 0;
};

/// What to redo so that all else leaves in time. Pure.
class FirstGuess {
 public:
  FirstGuess(const Profile& profile, const Machine& machine, const Budgets& budgets, uint32_t device, bool recompute);

  /// kOffload for all that is not redone. Time: n log n of the records.
  std::vector<Action> make(const GuessOptions& options) const;

 private:
  struct Packed {
    uint32_t record;
    double at;
    double bytes;
    double ratio;  // redo seconds a byte moved; infinite where it cannot be redone
  };
  std::vector<Packed> packs_;  // of the forward
  size_t records_;
  double device_, host_, spill_;
  double link_ = 0, disk_ = 0;  // bytes a second, out
  bool has_host_;
  double stall_ratio_ = 0;  // seconds a byte
};

}  // namespace ebbtide
