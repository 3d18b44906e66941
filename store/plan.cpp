#include <ebbtide/store/plan.h>

#include <algorithm>
#include <array>
#include <limits>
#include <numeric>
#include <utility>

namespace ebbtide {
namespace {

double cost_over_bytes(const ProfiledRecord& record) {
  return record.recipe->seconds / static_cast<double>(std::max<int64_t>(1, record.moved.count()));
}

bool may_redo(const ProfiledRecord& record, const PlanOptions& options) {
  return options.recompute && record.device == options.device && record.mobility == Mobility::kMovable &&
         record.recipe.has_value();
}

}  // namespace

const char* to_string(Action action) noexcept {
  static constexpr std::array kNames{"keep", "offload", "spill", "recompute"};
  return kNames[static_cast<size_t>(action)];
}

const char* to_string(Why why) noexcept {
  static constexpr std::array kNames{"someone else holds it",
                                     "no tier below can hold it",
                                     "the budget has room",
                                     "moves while the device computes",
                                     "waiting takes less than redoing",
                                     "no recipe",
                                     "host memory is full",
                                     "redoing takes less than waiting",
                                     "there is no tier below"};
  return kNames[static_cast<size_t>(why)];
}

double lower_bound(const Profile& profile, const Machine&, const Budgets&, const PlanOptions&) {
  return profile.seconds;
}

Plan plan(const Profile& profile, const Machine& machine, const Budgets& budgets, const PlanOptions& options) {
  Simulator simulator(profile, machine, budgets, options.device);
  std::vector<uint32_t> redoable;
  for (uint32_t i = 0; i < profile.records.size(); ++i)
    if (may_redo(profile.records[i], options)) redoable.push_back(i);
  std::ranges::stable_sort(redoable, [&](uint32_t a, uint32_t b) {
    return cost_over_bytes(profile.records[a]) < cost_over_bytes(profile.records[b]);
  });

  constexpr size_t kPrefixes = 32;
  Plan best;
  for (size_t i = 0; i <= kPrefixes; ++i) {
    std::vector<Action> actions(profile.records.size(), Action::kOffload);
    for (size_t k = 0; k < redoable.size() * i / kPrefixes; ++k) actions[redoable[k]] = Action::kRecompute;
    Simulated first = simulator.run(actions);
    Simulated again = simulator.run(first.became);  // what never left is kept, and frees the link
    if (i == kPrefixes) best.recompute_all_s = again.step_s;
    if (best.actions.empty() || again.step_s < best.predicted.step_s) {
      best.actions = first.became;
      best.predicted = std::move(again);
    }
  }
  for (size_t i = 0; i < best.actions.size(); ++i) {
    const ProfiledRecord& record = profile.records[i];
    Why why = Why::kFits;
    if (record.mobility != Mobility::kMovable)
      why = record.mobility == Mobility::kStays ? Why::kStays : Why::kElsewhere;
    else if (best.actions[i] == Action::kRecompute)
      why = machine.link || machine.disk ? Why::kCheaperToRedo : Why::kNoLowerTier;
    else if (best.actions[i] != Action::kKeep)
      why = record.recipe ? Why::kMovesUnseen : Why::kNoRecipe;
    best.why.push_back(why);
  }
  best.return_order = simulator.return_order(best.actions);
  best.lower_bound_s = lower_bound(profile, machine, budgets, options);
  return best;
}

}  // namespace ebbtide
