#include <ebbtide/store/lower_bound.h>
#include <ebbtide/store/plan_search.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <random>
#include <utility>

namespace ebbtide {
namespace {

constexpr double kEnough = 2e-4;                // above what no plan can reach
constexpr int64_t kFewest = 24, kMost = 12000;  // simulations

constexpr double kHeat = 0.05;  // how much longer, as a share of the pass, annealing accepts at first
/// The part of host memory that what sinks passes through.
constexpr int64_t kStaging = 8;
constexpr double kNever = std::numeric_limits<double>::infinity();

bool leaves(Action action) {
  return action == Action::kOffload || action == Action::kSpill;
}

}  // namespace

PlanSearch::PlanSearch(const Profile& profile, const Machine& machine, const Budgets& budgets,
                       const PlanOptions& options)
    : profile_(profile),
      machine_(machine),
      options_(options),
      budgets_(budgets),
      two_tiers_(machine.link && machine.disk),
      simulator_(profile, machine, budgets, options.device),
      guesses_(profile, machine, budgets, options.device, options.recompute),
      simulations_left_(std::clamp(
          options.most_steps / std::max<int64_t>(1, static_cast<int64_t>(profile.steps.size())), kFewest, kMost)) {
  if (options.recompute) treatments_.push_back(Action::kRecompute);
  std::vector<double> packed_at(profile.records.size()), reuse(profile.records.size(), kNever);
  for (const ProfiledStep& step : profile.steps) {
    if (step.what == ProfiledStep::What::kPack) packed_at[step.record] = step.at;
    if (step.what == ProfiledStep::What::kUnpack && reuse[step.record] == kNever)
      reuse[step.record] = step.at - packed_at[step.record];
  }
  const std::vector<double> redo_s = redo_shares(profile);
  std::vector<double> ratio(profile.records.size());
  std::map<uint32_t, std::vector<uint32_t>> groups;
  for (uint32_t i = 0; i < profile.records.size(); ++i) {
    const ProfiledRecord& record = profile.records[i];
    if (record.device != options.device || record.mobility != Mobility::kMovable || record.bytes == Bytes(0)) continue;
    by_reuse_.push_back(i);
    if (!options.recompute || !record.recipe) continue;
    ratio[i] = redo_s[i] / static_cast<double>(std::max<int64_t>(1, record.moved.count()));
    if (record.recipe->group) groups[*record.recipe->group].push_back(i);
    by_ratio_.push_back(i);
  }
  std::ranges::stable_sort(by_reuse_, std::greater<>(), [&](uint32_t i) { return reuse[i]; });
  std::ranges::stable_sort(by_ratio_, std::less<>(), [&](uint32_t i) { return ratio[i]; });
  for (auto& [first, records] : groups) groups_.push_back(std::move(records));
}

void PlanSearch::run() {
  begin_with_extremes();
  const size_t treatments = treatments_.size() + (two_tiers_ ? 1 : 0);
  if (std::pow(treatments, by_reuse_.size()) <= static_cast<double>(simulations_left_)) {
    try_all();
  } else {
    guess();
    guess_groups();
    improve();
    improve_in_pairs();
    anneal();
  }
  least_s_ = least_within(std::max(budgets_.device, simulated_.device_peak));
}

double PlanSearch::least_within(Bytes device) const {
  Budgets budgets = budgets_;
  budgets.device = device;
  return lower_bound(profile_, machine_, budgets, options_.device, options_.recompute);
}

/// The ends of the range. What neither can fit into the budget, nothing can.
void PlanSearch::begin_with_extremes() {
  const size_t records = profile_.records.size();
  std::vector<Action> moved(records, Action::kOffload), redone = moved;
  for (const uint32_t record : by_ratio_) redone[record] = Action::kRecompute;
  const Simulated all_moved = simulate(moved), all_redone = simulate(redone);
  const Bytes least = std::min(all_moved.device_peak, all_redone.device_peak);
  Bytes largest;
  for (const uint32_t record : by_reuse_) largest = std::max(largest, profile_.records[record].bytes);
  allowed_ = std::max(budgets_.device, std::min(least, budgets_.device + largest));
  least_s_ = least_within(allowed_);
  take(all_moved, moved);
  take(all_redone, redone);
  consider(std::move(moved));
  consider(std::move(redone));
  recompute_all_s_ = all_redone.step_s;
  if (options_.known.size() != records) return;
  std::vector<Action> known(options_.known.begin(), options_.known.end());
  if (!options_.recompute) std::ranges::replace(known, Action::kRecompute, Action::kOffload);
  consider(std::move(known));
}

/// Coarsely over all three, then finer around the best.
void PlanSearch::guess() {
  GuessOptions best;
  const auto attempt = [&](const GuessOptions& options) {
    if (done()) return;
    if (consider(guesses_.make(options))) best = options;
  };
  for (const double redo : {1.0, 0.6, 2.0})
    for (const double speed : {1.0, 0.9, 0.7}) attempt({.speed = speed, .most_redo = redo});
  for (const double always : {0.1, 0.5})
    attempt({.speed = best.speed, .most_redo = best.most_redo, .always_redo = always});
  const GuessOptions coarse = best;
  for (const double room : {0.97, 0.93, 0.85, 0.7, 0.5}) {
    GuessOptions options = coarse;
    options.room = room;
    attempt(options);
  }
  for (const double factor : {0.97, 1.03, 0.94}) {
    GuessOptions options = best;
    options.speed *= factor;
    attempt(options);
  }
  for (const double factor : {0.8, 1.25}) {
    GuessOptions options = best;
    options.most_redo *= factor;
    attempt(options);
  }
}

/// Many records at once as long as that helps, then fewer.
void PlanSearch::improve() {
  for (size_t at_once = std::max<size_t>(1, by_reuse_.size() / 8); !done();) {
    bool better = change(redone_dearest_first(), at_once, Action::kOffload);
    if (simulated_.stall_s + simulated_.copying_s > 0 || simulated_.device_peak > budgets_.device) {
      better |= change(moved_cheapest_first(), at_once, Action::kRecompute);
      better |= change(moved_soonest_first(), at_once, Action::kKeep);
    }
    if (better) continue;
    if (at_once == 1) return;
    at_once = (at_once + 1) / 2;
  }
}

/// What one run makes costs nothing more where the run is needed anyway, and saves nothing as long as it is. So which runs
/// there are: some in a row, all that they make. In smaller and smaller steps from where the best row was.
void PlanSearch::guess_groups() {
  if (groups_.size() < 2) return;
  struct Row {
    size_t first = 0, length = 0;
  };
  const std::vector<Action> others = actions_;
  const auto simulated = [&](const Row& row) {
    std::vector<Action> actions = others;
    for (size_t i = 0; i < groups_.size(); ++i)
      for (const uint32_t record : groups_[i])
        actions[record] = row.first <= i && i < row.first + row.length ? Action::kRecompute : Action::kOffload;
    sink(actions);
    const Simulated result = simulate(actions);
    take(result, std::move(actions));
    return rank(result);
  };
  Row row;
  Rank best = simulated(row);
  for (size_t step = groups_.size() / 2; step > 0; step /= 2) {
    for (bool better = true; better;) {
      better = false;
      const Row from = row;
      for (const Row& next : {Row{from.first, from.length + step}, Row{from.first + step, from.length},
                              Row{from.first - std::min(step, from.first), from.length},
                              Row{from.first, from.length - std::min(step, from.length)}}) {
        if (done()) return;
        if (next.first + next.length > groups_.size()) continue;
        const Rank now = simulated(next);
        if (!(now < best)) continue;
        best = now;
        row = next;
        better = true;
      }
    }
  }
}

/// Of a few records, every combination.
void PlanSearch::try_all() {
  std::vector<Action> treatments = treatments_;
  if (two_tiers_) treatments.push_back(Action::kSpill);  // sink() has no say here
  std::vector<size_t> chosen(by_reuse_.size());
  std::vector<Action> actions(profile_.records.size(), Action::kKeep);
  for (;;) {
    const Simulated simulated = simulate(actions);
    take(simulated, actions);
    size_t turned = 0;
    for (; turned < chosen.size(); ++turned) {
      chosen[turned] = (chosen[turned] + 1) % treatments.size();
      actions[by_reuse_[turned]] = treatments[chosen[turned]];
      if (chosen[turned] != 0) break;
    }
    if (turned == chosen.size()) return;
  }
}

/// What no single change can do: one record's for another's.
void PlanSearch::improve_in_pairs() {
  for (bool better = true; better && !done();) {
    better = false;
    for (size_t a = 0; a < by_reuse_.size(); ++a) {
      for (size_t b = a + 1; b < by_reuse_.size(); ++b) {
        for (const Action for_a : treatments_) {
          for (const Action for_b : treatments_) {
            if (done()) return;
            std::vector<Action> actions = actions_;
            actions[by_reuse_[a]] = for_a;
            actions[by_reuse_[b]] = for_b;
            if (actions != actions_) better |= consider(std::move(actions));
          }
        }
      }
    }
  }
}

/// As long as simulations are left: simulated annealing. A few large tensors make hollows out of which no small step
/// leads.
void PlanSearch::anneal() {
  if (by_reuse_.empty()) return;
  std::mt19937_64 random;  // from the same seed each time
  const auto one_of = [&](const auto& from) { return from[random() % from.size()]; };
  const auto chance = [&] { return static_cast<double>(random() >> 11) * 0x1p-53; };
  std::vector<Action> now = actions_;
  Simulated simulated = simulated_;
  for (const int64_t all = simulations_left_; !done();) {
    std::vector<Action> next = now;
    for (uint64_t many = 1 + random() % 3; many > 0; --many) next[one_of(by_reuse_)] = one_of(treatments_);
    sink(next);
    const Simulated result = simulate(next);
    take(result, next);
    const double heat = kHeat * static_cast<double>(simulations_left_) / static_cast<double>(all);
    const double worse = (result.step_s - simulated.step_s) / profile_.seconds;
    if (over(result) > over(simulated) || (worse > 0 && std::exp(-worse / heat) <= chance())) continue;
    now = std::move(next);
    simulated = result;
  }
  consider(actions_);  // what never left is kept
}

/// Gives that action to the next `at_once` of the records, and to the next, and keeps what is better.
bool PlanSearch::change(const std::vector<uint32_t>& records, size_t at_once, Action action) {
  bool better = false;
  for (size_t first = 0; first < records.size() && !done(); first += at_once) {
    std::vector<Action> actions = actions_;
    for (size_t i = first; i < std::min(records.size(), first + at_once); ++i) actions[records[i]] = action;
    better |= consider(std::move(actions));
  }
  return better;
}

std::vector<uint32_t> PlanSearch::redone_dearest_first() const {
  std::vector<uint32_t> records;
  for (size_t i = by_ratio_.size(); i-- > 0;)
    if (actions_[by_ratio_[i]] == Action::kRecompute) records.push_back(by_ratio_[i]);
  return records;
}

std::vector<uint32_t> PlanSearch::moved_cheapest_first() const {
  std::vector<uint32_t> records;
  for (const uint32_t record : by_ratio_)
    if (leaves(actions_[record])) records.push_back(record);
  return records;
}

std::vector<uint32_t> PlanSearch::moved_soonest_first() const {
  std::vector<uint32_t> records;
  for (size_t i = by_reuse_.size(); i-- > 0;)
    if (leaves(actions_[by_reuse_[i]])) records.push_back(by_reuse_[i]);
  return records;
}

/// Or good enough.
bool PlanSearch::done() const noexcept {
  return simulations_left_ <= 0 || (fits() && simulated_.step_s <= least_s_ * (1 + kEnough));
}

Simulated PlanSearch::simulate(const std::vector<Action>& actions) {
  --simulations_left_;
  return simulator_.run(actions);
}

/// Takes them if they are better: what never left kept, which frees the link, or as they are.
bool PlanSearch::consider(std::vector<Action> actions) {
  sink(actions);
  const Simulated first = simulate(actions);
  std::vector<Action> frozen = simulator_.became();
  if (frozen == actions) return take(first, std::move(actions));
  constexpr double kHopeless = 1.02;
  // Taken all the same where it is the first that needs no more than the budget.
  if (fits() && first.step_s > simulated_.step_s * kHopeless) return take(first, std::move(actions));
  sink(frozen);
  const Simulated second = simulate(frozen);
  const bool better = take(second, std::move(frozen));
  return take(first, std::move(actions)) || better;
}

bool PlanSearch::take(const Simulated& simulated, std::vector<Action> actions) {
  if (simulated.squeezed == 0) allowed_ = budgets_.device;
  if (!actions_.empty() && !(rank(simulated) < rank(simulated_))) return false;
  simulated_ = simulated;
  actions_ = std::move(actions);
  return true;
}

Bytes PlanSearch::over(const Simulated& simulated) const noexcept {
  return std::max(simulated.device_peak - allowed_, Bytes(0)) + std::max(simulated.host_peak - budgets_.host, Bytes(0));
}

PlanSearch::Rank PlanSearch::rank(const Simulated& simulated) const noexcept {
  return {over(simulated), simulated.step_s, simulated.moved_out + simulated.written};
}

/// Of what leaves, host memory takes what comes back soonest.
void PlanSearch::sink(std::vector<Action>& actions) const {
  if (!two_tiers_) return;
  Bytes left;
  for (const uint32_t record : by_reuse_)
    if (leaves(actions[record])) left += profile_.records[record].moved;
  const bool all_fits = left <= budgets_.host;
  for (const uint32_t record : by_reuse_) {
    if (!leaves(actions[record])) continue;
    const bool sinks = !all_fits && left > budgets_.host - budgets_.host / kStaging;
    actions[record] = sinks ? Action::kSpill : Action::kOffload;
    if (sinks) left -= profile_.records[record].moved;
  }
}

}  // namespace ebbtide
