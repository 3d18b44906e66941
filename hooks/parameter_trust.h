// Whether recipes may read parameters again.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>

namespace ebbtide {

/// A parameter may change between a forward and its backward, where torch's gradients rest on what an op made of it before.
/// Torch tells nobody. So bytes are let go of for a recipe that reads a parameter only where an optimizer's changes are
/// announced, and where programs were seen to change parameters in no other way: for two optimizer steps such recipes are
/// on trial, which is to say that the bytes are kept, and when they are asked for, one recipe of a call site makes them
/// again and is compared; of the others a fingerprint of their parameters is. One that failed ends it. An accelerator's
/// are all run, and end when it is through with them, some steps later.
///
/// Threads: all methods from any.
class ParameterTrust {
 public:
  /// From now on somebody calls step_announced() and RecipeBook::before_change() when an optimizer is about to step.
  void expect_announcements() {
    std::lock_guard lock(mutex_);
    announced_ = true;
  }
  /// Whether recipes that read parameters are worth looking for.
  bool possible() const {
    std::lock_guard lock(mutex_);
    return announced_ && !failed_;
  }
  /// Whether bytes may be let go of for them.
  bool earned() const {
    std::lock_guard lock(mutex_);
    return announced_ && !failed_ && steps_ >= kStepsOnTrial;
  }

  /// The step that trials now belong to.
  int64_t now() const {
    std::lock_guard lock(mutex_);
    return now_;
  }
  /// A recipe is tried out. Returns the step that it belongs to.
  int64_t trial() {
    std::lock_guard lock(mutex_);
    ++open_[now_].under_way;
    return now_;
  }
  /// A recipe on trial made the bytes. True where trust is earned by it.
  bool held(int64_t step) {
    std::lock_guard lock(mutex_);
    --open_[step].under_way;
    open_[step].held = true;
    return settle(step);
  }
  /// It did not.
  void failed() {
    std::lock_guard lock(mutex_);
    failed_ = true;
    open_.clear();
  }
  void backward_ended() {
    std::lock_guard lock(mutex_);
    if (const auto step = open_.find(now_); step != open_.end()) step->second.backward_ended = true;
  }
  /// An optimizer that steps inside the backward, parameter by parameter, steps once a backward all the same. True where
  /// trust is earned by it.
  bool step_announced() {
    std::lock_guard lock(mutex_);
    const auto step = open_.find(now_);
    if (step == open_.end() || !step->second.backward_ended) return false;
    step->second.over = true;
    return settle(now_++);
  }

 private:
  static constexpr int kStepsOnTrial = 2;

  struct Step {
    int under_way = 0;  ///< trials
    bool held = false;
    bool backward_ended = false;  ///< after the first trial began
    bool over = false;
  };
  bool settle(int64_t number) {
    const Step& step = open_.at(number);
    if (!step.over || step.under_way > 0 || !step.held) return false;
    open_.erase(number);
    return ++steps_ == kStepsOnTrial && !failed_;
  }

  mutable std::mutex mutex_;
  bool announced_ = false;
  bool failed_ = false;
  int64_t now_ = 0;
  std::map<int64_t, Step> open_;
  int steps_ = 0;
};

}  // namespace ebbtide
