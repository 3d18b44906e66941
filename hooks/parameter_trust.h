// Whether recipes may read parameters again.
#pragma once

#include <mutex>

namespace ebbtide {

/// A parameter may change between a forward and its backward, where torch's gradients rest on what an op made of it before.
/// Torch tells nobody. So bytes are let go of for a recipe that reads a parameter only where an optimizer's changes are
/// announced, and where programs were seen to change parameters in no other way: for two optimizer steps such recipes are
/// on trial, which is to say that the bytes are kept and compared when they are asked for. One that failed ends it.
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

  /// A recipe on trial made the bytes.
  void held() {
    std::lock_guard lock(mutex_);
    held_ = true;
  }
  /// It did not.
  void failed() {
    std::lock_guard lock(mutex_);
    failed_ = true;
  }
  void backward_ended() {
    std::lock_guard lock(mutex_);
    backward_ended_ = held_;
  }
  /// An optimizer that steps inside the backward, parameter by parameter, steps once a backward all the same. True where
  /// trust is earned by it.
  bool step_announced() {
    std::lock_guard lock(mutex_);
    if (!backward_ended_) return false;
    held_ = backward_ended_ = false;
    return ++steps_ == kStepsOnTrial;
  }

 private:
  static constexpr int kStepsOnTrial = 2;

  mutable std::mutex mutex_;
  bool announced_ = false;
  bool failed_ = false;
  bool held_ = false;            // since the last step
  bool backward_ended_ = false;  // after that
  int steps_ = 0;
};

}  // namespace ebbtide
