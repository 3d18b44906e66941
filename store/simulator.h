// What a step would take, and how much memory, if its records were treated in a given way.
#pragma once

#include <ebbtide/pinned_pool/bytes.h>
#include <ebbtide/pinned_pool/export.h>
#include <ebbtide/store/machine.h>
#include <ebbtide/store/profile.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

namespace ebbtide {

/// What becomes of a record after its pack.
enum class Action : uint8_t {
  kKeep,
  kOffload,    ///< leaves for host memory; without a link the same as kSpill
  kSpill,      ///< leaves for the disk
  kRecompute,  ///< let go of, and made again by its recipe
};

struct Simulated {
  double step_s = 0;       ///< the profile's seconds and the three below
  double stall_s = 0;      ///< compute waits for memory or a transfer
  double recompute_s = 0;  ///< redos
  double copying_s = 0;    ///< taken from the computation by what a disk moves
  Bytes device_peak;       ///< of what counts in the budget
  Bytes host_peak;
  Bytes moved_out, moved_in;  ///< over the link
  Bytes written, read;        ///< of the disk
  int64_t squeezed = 0;       ///< times that no room could come and some was taken over a budget
};

/// Plays a pass on a machine. One compute stream runs the profile's steps in order. Copies out are in order of packing
/// and begin at the pack; copies in are in order of first need. What is to be redone is let go of at the step after its
/// pack; what has a lower copy when the budget needs its memory, the oldest first. In the backward all memory, also that of redos, is reserved in order of first need, ahead
/// as far as the budget goes; what one run makes all at once, with the first of it that is wanted. (Without that order what is fetched ahead could take the memory that the next redo waits
/// for.) A step that finds no room waits for copies out; where none is under way it takes what it needs, over the
/// budget.
///
/// Threads: one at a time.
class EBBTIDE_API Simulator {
 public:
  /// For the records of one device; those of others are of no account.
  /// REQUIRES: !profile.invalid().
  /// Lifetime: copies what it needs.
  Simulator(const Profile& profile, const Machine& machine, const Budgets& budgets, uint32_t device = 0);
  ~Simulator();
  Simulator(Simulator&&) noexcept;

  /// `actions`: one a record. What a record cannot do (leave, be redone, leave for a disk that is not there) counts as
  /// keeping it. Time: linear in the profile's steps.
  Simulated run(std::span<const Action> actions);

  /// Of the last run: its actions, but kKeep for what never left, since the budget had room for it to the end.
  std::vector<Action> became() const;
  /// Of the last run: what comes back or is redone, in order of first need.
  std::vector<uint32_t> return_order() const;

 private:
  class Run;
  std::unique_ptr<Run> run_;
};

}  // namespace ebbtide
