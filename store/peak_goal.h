// Which budget of saved tensors keeps the peak of a whole process on a device within what it may have.
#pragma once

#include <ebbtide/pinned_pool/bytes.h>
#include <ebbtide/pinned_pool/export.h>
#include <ebbtide/store/region.h>
#include <ebbtide/transfer/memory_meter.h>

#include <cstdint>
#include <optional>
#include <string>

namespace ebbtide {

/// Learns what is not the store's. Looks cut a pass into stretches, from a pack or unpack to the next. Of a stretch with
/// peak p, in which the store held s, others took o = p - s. With a budget B and so many bytes a saved and not dead,
/// wherever they lie, the stretch would take o + min(B, a) at most. So B = most - max(o) over the stretches in
/// which o + a > most: all others fit whatever the budget is.
///
/// A pass is watched until the budget has settled; then only its end is looked at, and when the peak was passed it is
/// watched again.
///
/// Threads: none of its own; its owner's lock.
class EBBTIDE_API PeakGoal {
 public:
  enum class Manners {
    kPlain,   ///< the user gave the goal: peaks are restarted at each look
    kPolite,  ///< nobody did: peaks, which the user may read, are left alone while half of it all is free
  };
  PeakGoal(Bytes most, Manners manners) noexcept : most_(most), manners_(manners) {}

  /// What the next pack or unpack must bring to look().
  enum class Looks : uint8_t {
    kNone,
    kUsage,      ///< of the memory
    kRestarted,  ///< and then the peak is restarted
  };
  Looks looks() const noexcept;

  struct Held {
    Bytes here;   ///< counts in the budget
    Bytes alive;  ///< saved and not dead, in any tier
  };
  enum class Phase : uint8_t { kBetween, kForward, kBackward };
  struct Moment {
    Phase phase = Phase::kBetween;
    const char* op = nullptr;  ///< that made what is packed or unpacked
    const RegionLabel* region = nullptr;
  };

  /// At a pack or an unpack, before it changes anything: the stretch since the last look ends. `pass`: its number.
  void look(int64_t pass, const MemoryUsage& usage, Held held, const Moment& moment);
  /// The first backward of a pass has ended: of the one that is watched, or of a later one, where that is kept for long.
  void pass_ended(int64_t pass, const MemoryUsage& usage, Held held);
  /// A pass is over that had no backward, or whose backward has ended.
  void pass_died(int64_t pass) noexcept;
  /// An allocation has found no room: 5% less from now on, and no more than `budget`.
  void note_shortage(Bytes budget) noexcept;

  /// Of saved tensors.
  Bytes budget() const noexcept { return budget_; }
  Bytes most() const noexcept { return most_; }
  Manners manners() const noexcept { return manners_; }

  /// Of the highest stretch that was seen since the last pass began that was watched.
  struct Peak {
    Bytes bytes;
    Bytes saved;  ///< part of it: what counted in the budget
    Moment moment;
  };
  const Peak& peak() const noexcept { return peak_; }
  /// What is taken without a saved tensor in memory, at its highest. More than most(): no budget helps.
  Bytes others() const noexcept { return others_; }
  /// "after the pack of Gelu in blocks.3, in the forward", for people.
  static std::string name_of(const Moment& moment);

 private:
  Bytes margin() const noexcept { return most_ / 64; }
  void begin(int64_t pass, const MemoryUsage& usage);
  void stretch(Bytes peak, Held held, const Moment& moment);

  Bytes most_;
  const Manners manners_;
  Bytes budget_;
  bool learned_ = false;  // some pass has been seen to its end
  bool watches_ = true;
  int watched_in_a_row_ = 0;
  int64_t pass_ = 0;  // that is watched, or whose end is awaited; 0: none
  bool restarts_ = false;
  bool fresh_ = false;      // the peak was restarted after the last look
  int64_t shortages_ = -1;  // seen so far

  // Of the pass.
  std::optional<Bytes> at_begin_;  // taken when it began
  Bytes reserve_;                  // for what its first backward will show
  Held last_;
  Bytes bound_;  // of the budget, by the stretches so far
  bool bounded_ = false;
  Peak peak_;
  Bytes others_;
};

}  // namespace ebbtide
