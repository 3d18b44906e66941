// What a store has learned of the passes that a program repeats, and the plans in force.
#pragma once

#include <ebbtide/pinned_pool/bytes.h>
#include <ebbtide/pinned_pool/export.h>
#include <ebbtide/store/course.h>
#include <ebbtide/store/machine.h>
#include <ebbtide/store/pass_log.h>
#include <ebbtide/store/profile.h>
#include <ebbtide/store/saved_plans.h>

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <vector>

namespace ebbtide {

/// Training steps repeat: the first passes of a kind are only watched, later ones follow a plan made of what was seen.
/// A kind is the sequence of what is packed; training and evaluation, or shapes that alternate, are kinds of their own.
/// Or all follow plans that were saved, which are frozen then: no other is made, and kinds that have none go without.
/// Or some follow plans that another store made, and the others their own.
///
/// Threads: none of its own; its owner's lock. What takes long is in Task::run, which needs no lock.
class EBBTIDE_API Planner {
 public:
  /// A pass that has ended.
  struct Ended {
    const PassLog& log;
    double seconds = 0;                ///< from its first pack to its end
    const Course* followed = nullptr;  ///< to its end
    std::vector<Conditions> on;        ///< by the devices' numbers
    double copying_s = 0;              ///< of the log's compute: what its transfers took from it
    bool crowded = false;              ///< some budget was too small for it
    bool timed = true;                 ///< the log's times are those of its computation
  };

  /// A plan to be made, of what was seen.
  class Task {
   public:
    std::shared_ptr<const Course> run() const;

   private:
    friend class Planner;
    uint64_t kind_ = 0;
    std::vector<uint64_t> prefixes_;
    std::vector<Profile> profiles_;
    std::vector<Conditions> on_;
    std::shared_ptr<const Course> known_;
    bool recompute_ = true;
    bool frozen_ = false;  // what is known is only held within other budgets
  };

  explicit Planner(bool recompute) noexcept : recompute_(recompute) {}

  /// The course of passes that begin with these packs; of several the one that came after a pass like the last, the time
  /// before, else the latest. None: nothing is known of them.
  std::shared_ptr<const Course> find(uint64_t prefix, size_t packs) const noexcept;

  /// Whether the next pass of this kind is to be learned from: what the plan in force does not use counts too.
  bool wants(const Course& course) const noexcept;
  /// Learns from a pass. What is returned is to be run without the lock, and its result adopted.
  std::optional<Task> ended(const Ended& pass);
  void adopt(const Task& task, std::shared_ptr<const Course> course);
  /// What the last passes have shown is no longer all: the next of each kind are learned from.
  void look_again() noexcept;
  /// A pass has ended that was not watched.
  void passed_unseen() noexcept { last_ = nullptr; }

  /// Before the first pass.
  void freeze(std::vector<SavedPlan> plans);
  bool frozen() const noexcept { return frozen_; }
  /// Holds what is frozen within these budgets; what the plans keep in less is kept again when there is more.
  void hold_within(const std::vector<Conditions>& on);
  /// Passes of these kinds follow these plans from now on, and none are made for them here. `held`: each within the
  /// budgets of this store. REQUIRES: not frozen.
  void share(std::vector<SavedPlan> plans, std::vector<std::shared_ptr<const Course>> held);
  /// The latest first.
  std::vector<SavedPlan> in_force() const;
  /// What the largest pass with a plan saves on a device.
  Bytes most_saved(size_t device) const noexcept;

  /// How many plans were adopted.
  int64_t plans() const noexcept { return plans_; }
  /// Of the pass that ended last; null if it followed none.
  const std::shared_ptr<const Course>& last() const noexcept { return last_; }
  /// Of the kind that ended last; none before its second pass.
  const Profile* last_profile() const noexcept;

 private:
  static constexpr size_t kMostKinds = 8;
  static constexpr int kProfiles = 3;
  static constexpr int kOffToReplan = 3;
  static constexpr int kMostOffToReplan = 1000;  // a machine whose times vary is not planned for without end
  static constexpr double kOff = 0.05;
  static constexpr double kChanged = 0.1;

  struct Kind {
    uint64_t id = 0;
    int64_t passes = 0;
    int wanted = 0;  ///< so many more passes are to be looked at before a plan is made
    std::vector<Profile> profiles;
    std::shared_ptr<const Course> course;
    std::shared_ptr<const Course> saved;  ///< what is frozen or shared, as it was saved
    uint64_t then = 0;                    ///< the kind of the pass that ended after the last of this kind
    int off = 0;                          ///< passes in a row that took another time than predicted
    int off_to_replan = kOffToReplan;
  };
  Kind* latest(uint64_t id);
  std::optional<Task> to_hold_within(const Kind& kind, const std::vector<Conditions>& on) const;
  static bool budgets_changed(const std::vector<Conditions>& before, const std::vector<Conditions>& now) noexcept;
  static bool speeds_changed(const std::vector<Conditions>& before, const std::vector<Conditions>& now) noexcept;

  const bool recompute_;
  bool frozen_ = false;
  std::deque<Kind> kinds_;  // the latest first
  std::shared_ptr<const Course> last_;
  int64_t plans_ = 0;
};

}  // namespace ebbtide
