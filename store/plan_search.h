// The search for the best treatment of a pass's records.
#pragma once

#include <ebbtide/store/first_guess.h>
#include <ebbtide/store/machine.h>
#include <ebbtide/store/plan.h>
#include <ebbtide/store/profile.h>
#include <ebbtide/store/simulator.h>

#include <cstdint>
#include <tuple>
#include <vector>

namespace ebbtide {

/// Simulates guesses, takes the best, and changes it in places for as long as that helps and the number of simulations
/// allows: so that the time is bounded, and the result the same each time.
class PlanSearch {
 public:
  PlanSearch(const Profile& profile, const Machine& machine, const Budgets& budgets, const PlanOptions& options);

  void run();

  const std::vector<Action>& actions() const noexcept { return actions_; }
  /// What the simulator says of them.
  const Simulated& simulated() const noexcept { return simulated_; }
  double recompute_all_s() const noexcept { return recompute_all_s_; }
  double lower_bound_s() const noexcept { return least_s_; }

 private:
  /// The less the better: bytes over the budget, time, traffic.
  using Rank = std::tuple<Bytes, double, Bytes>;
  Bytes over(const Simulated& simulated) const noexcept;
  Rank rank(const Simulated& simulated) const noexcept;

  double least_within(Bytes device) const;
  void begin_with_extremes();
  void guess();
  void guess_groups();
  void try_all();
  void improve();
  void improve_in_pairs();
  void anneal();
  bool change(const std::vector<uint32_t>& records, size_t at_once, Action action);
  std::vector<uint32_t> redone_dearest_first() const;
  std::vector<uint32_t> moved_cheapest_first() const;
  std::vector<uint32_t> moved_soonest_first() const;

  bool fits() const noexcept {
    return !actions_.empty() && simulated_.device_peak <= allowed_ && simulated_.host_peak <= budgets_.host;
  }
  bool done() const noexcept;
  Simulated simulate(const std::vector<Action>& actions);
  bool consider(std::vector<Action> actions);
  bool take(const Simulated& simulated, std::vector<Action> actions);
  void sink(std::vector<Action>& actions) const;

  const Profile& profile_;
  const Machine& machine_;
  const PlanOptions& options_;
  const Budgets budgets_;
  const bool two_tiers_;
  Simulator simulator_;
  const FirstGuess guesses_;
  std::vector<Action> treatments_{Action::kKeep, Action::kOffload};  // that may be tried; sink() makes spills
  std::vector<uint32_t> by_ratio_;             // records that can be redone, by redo seconds a byte
  std::vector<std::vector<uint32_t>> groups_;  // that can be redone, by one run each
  std::vector<uint32_t> by_reuse_;             // records that can leave, from pack to first need the longest first
  int64_t simulations_left_;
  Bytes allowed_;       // peak
  double least_s_ = 0;  // no plan takes less
  Simulated simulated_;
  std::vector<Action> actions_;
  double recompute_all_s_ = 0;
};

}  // namespace ebbtide
