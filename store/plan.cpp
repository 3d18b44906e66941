#include <ebbtide/store/plan.h>
#include <ebbtide/store/plan_search.h>

#include <array>
#include <utility>

namespace ebbtide {
namespace {

Why why(const ProfiledRecord& record, Action action, const Machine& machine) {
  if (record.mobility == Mobility::kElsewhere) return Why::kElsewhere;
  if (record.mobility == Mobility::kStays) return Why::kStays;
  switch (action) {
    case Action::kKeep:
      return Why::kFits;
    case Action::kSpill:
      if (machine.link) return Why::kHostFull;
      [[fallthrough]];
    case Action::kOffload:
      return record.recipe ? Why::kCheaperToMove : Why::kNoRecipe;
    case Action::kRecompute:
      return machine.link || machine.disk ? Why::kCheaperToRedo : Why::kNoLowerTier;
  }
  return Why::kFits;
}

}  // namespace

const char* to_string(Action action) noexcept {
  static constexpr std::array kNames{"keep", "offload", "spill", "recompute"};
  return kNames[static_cast<size_t>(action)];
}

const char* to_string(Why why) noexcept {
  static constexpr std::array kNames{
      "someone else holds it",          "no tier below can hold it", "the budget has room",
      "moving takes less than redoing", "it has no recipe",          "host memory is full",
      "redoing takes less than moving", "there is no tier below"};
  return kNames[static_cast<size_t>(why)];
}

Plan plan(const Profile& profile, const Machine& machine, const Budgets& budgets, const PlanOptions& options) {
  PlanSearch search(profile, machine, budgets, options);
  search.run();
  Plan best;
  best.actions = search.actions();
  best.predicted = search.simulated();
  best.recompute_all_s = search.recompute_all_s();
  for (size_t i = 0; i < best.actions.size(); ++i)
    best.why.push_back(why(profile.records[i], best.actions[i], machine));
  Simulator simulator(profile, machine, budgets, options.device);
  (void)simulator.run(best.actions);
  best.return_order = simulator.return_order();
  best.lower_bound_s = search.lower_bound_s();
  return best;
}

}  // namespace ebbtide
