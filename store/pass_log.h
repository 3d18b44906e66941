// What a pass does, as it goes: the raw material of its profile.
#pragma once

#include <ebbtide/pinned_pool/bytes.h>
#include <ebbtide/pinned_pool/export.h>
#include <ebbtide/store/profile.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace ebbtide {

/// One entry a record and one a step, so that a pass costs what it does and no more; names and numbers are put in order
/// for a planner only where one asks, see profile().
/// Threads: none of its own; its owner's lock.
class EBBTIDE_API PassLog {
 public:
  using Time = std::chrono::steady_clock::time_point;

  /// A record, as its first pack knows it.
  struct Packed {
    Bytes bytes;  ///< in resident memory
    Bytes moved;  ///< when it leaves or comes back
    uint32_t device = 0;
    uint32_t dtype = 0;            ///< any number that tells one from another
    const char* op = nullptr;      ///< that made it; lives as long as the program
    const char* region = nullptr;  ///< the same
  };

  /// For another pass, which then takes no memory where it does as many things as this one did.
  void clear() noexcept;

  /// Returns the record's index.
  uint32_t pack(const Packed& packed, Time now);
  void unpack(uint32_t index, Time now) {
    has_backward_ = true;
    step(ProfiledStep::What::kUnpack, index, now);
  }
  void death(uint32_t index, Time now) { step(ProfiledStep::What::kDeath, index, now); }
  void end(Time now) { seconds_ = compute(now); }

  /// The next step's place among them.
  size_t steps() const noexcept { return steps_.size(); }
  /// Times of other clocks, in seconds of compute, for steps by place; of each device they rise from step to step. Those
  /// that have none come right after the one before, of their device where it has times. Steps are in order of time from
  /// now on: devices are asked one after the other for what they do at once.
  /// REQUIRES: end() was called.
  void retime(std::span<const std::pair<size_t, double>> times, double seconds);

  void set_mobility(uint32_t index, Mobility mobility) noexcept { made_[index].mobility = mobility; }
  /// The record can be made again. `seconds`: a guess at what that takes. `group`: as Recipe::group(); of what one run makes
  /// profile() tells by the times of the packs what it takes up to each.
  void set_recipe(uint32_t index, double seconds, std::span<const uint32_t> inputs, uint64_t group = 0);
  /// It is not to be made again after all.
  void forget_recipe(uint32_t index) noexcept { made_[index].redo_s = -1; }
  /// A redo took so long.
  void set_redo_seconds(uint32_t index, double seconds) noexcept { made_[index].redo_s = seconds; }

  /// Callers waited, or redid something: no part of what the pass computes.
  void pause(double seconds) noexcept { paused_ += seconds; }

  size_t records() const noexcept { return made_.size(); }
  /// A hash of what was packed so far: of each record's device, dtype and size, the latter in steps of an eighth of its
  /// power of two, so that shapes that vary a little make no new kind of pass.
  uint64_t prefix() const noexcept { return prefix_; }
  /// A log of the same kind, with nothing of what the pass did.
  PassLog kind_alone() const {
    PassLog alone;
    alone.prefix_ = prefix_;
    return alone;
  }
  /// prefix() after each pack.
  std::vector<uint64_t> prefixes() const;
  /// Whether anything was asked for.
  bool has_backward() const noexcept { return has_backward_; }

  Profile profile() const;

 private:
  struct Made : Packed {
    Mobility mobility = Mobility::kMovable;
    double redo_s = -1;  // < 0: no recipe
    uint64_t group = 0;
    uint32_t first_input = 0;
    uint32_t inputs = 0;
  };

  double compute(Time now) noexcept;
  void step(ProfiledStep::What what, uint32_t index, Time now) { steps_.push_back({what, index, compute(now)}); }

  std::vector<Made> made_;
  std::vector<uint32_t> inputs_;  // of all recipes, one after the other
  std::vector<ProfiledStep> steps_;
  Time begin_;
  double paused_ = 0;
  double latest_ = 0;  // several threads' pauses may add up to more than has passed
  double seconds_ = 0;
  uint64_t prefix_ = 0;
  bool has_backward_ = false;
};

}  // namespace ebbtide
