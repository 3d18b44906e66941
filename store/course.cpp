#include <ebbtide/store/course.h>
#include <ebbtide/store/lower_bound.h>

#include <algorithm>
#include <utility>

namespace ebbtide {
namespace {

/// Less is noise, and a plan that stays is easier to read.
constexpr double kGainToChange = 0.015;

Action way_out(const Machine& machine) noexcept {
  return machine.link ? Action::kOffload : Action::kSpill;
}

void simulate_again(Plan& plan, const Profile& profile, const Conditions& on, uint32_t device) {
  Simulator simulator(profile, on.machine, on.budgets, device);
  plan.predicted = simulator.run(plan.actions);
  plan.return_order = simulator.return_order();
}

/// What a plan keeps is still there when the scope ends, and the budget has to hold it then: of what is too much the
/// oldest goes another way.
void keep_within(Plan& plan, const Profile& profile, const Conditions& on, const PlanOptions& options) {
  const auto kept = [&](size_t i) {
    return plan.actions[i] == Action::kKeep && profile.records[i].device == options.device &&
           profile.records[i].mobility == Mobility::kMovable;
  };
  Bytes staying;
  for (size_t i = 0; i < plan.actions.size(); ++i)
    if (kept(i)) staying += profile.records[i].bytes;
  if (staying <= on.budgets.device) return;
  for (size_t i = 0; i < plan.actions.size() && staying > on.budgets.device; ++i) {
    if (!kept(i)) continue;
    const bool redone = options.recompute && profile.records[i].recipe;
    if (!redone && !on.machine.link && !on.machine.disk) continue;
    plan.actions[i] = redone ? Action::kRecompute : way_out(on.machine);
    plan.why[i] = redone ? Why::kCheaperToRedo : Why::kNoRecipe;
    staying -= profile.records[i].bytes;
  }
  simulate_again(plan, profile, on, options.device);
}

/// Devices work one after the other, or one waits for another: the time beyond the computation adds up.
void sum_up(Course& course) {
  course.predicted_s = course.profile.seconds;
  course.lower_bound_s = 0;
  for (const Plan& plan : course.plans) {
    course.predicted_s += plan.predicted.step_s - course.profile.seconds;
    course.lower_bound_s = std::max(course.lower_bound_s, plan.lower_bound_s);
  }
  course.recomputes = false;
  for (size_t i = 0; i < course.profile.records.size(); ++i)
    if (course.action(i) == Action::kRecompute) course.recomputes = true;
}

}  // namespace

Course make_course(Profile profile, std::vector<Conditions> on, bool recompute, const Course* known) {
  Course course;
  course.profile = std::move(profile);
  course.on = std::move(on);
  for (size_t device = 0; device < course.on.size(); ++device) {
    const Conditions& here = course.on[device];
    PlanOptions options{.device = static_cast<uint32_t>(device), .recompute = recompute};
    const Plan* before = known != nullptr && device < known->plans.size() ? &known->plans[device] : nullptr;
    if (before != nullptr) options.known = before->actions;
    Plan better = plan(course.profile, here.machine, here.budgets, options);
    keep_within(better, course.profile, here, options);
    if (before != nullptr) {
      const Simulated as_before =
          Simulator(course.profile, here.machine, here.budgets, options.device).run(before->actions);
      if (as_before.squeezed == 0 && as_before.step_s < better.predicted.step_s * (1 + kGainToChange)) {
        better.actions = before->actions;
        better.why = before->why;
        better.return_order = before->return_order;
        better.predicted = as_before;
      }
    }
    course.plans.push_back(std::move(better));
  }
  sum_up(course);
  return course;
}

Course held_within(const Course& course, const std::vector<Conditions>& on, bool recompute) {
  Course held = course;
  held.on = on;
  for (size_t device = on.size(); device < course.on.size(); ++device) held.on.push_back(course.on[device]);
  for (size_t device = 0; device < std::min(on.size(), course.plans.size()); ++device) {
    Conditions& here = held.on[device];
    const Machine& known = course.on[device].machine;
    if (!here.machine.link) here.machine.link = known.link;
    if (!here.machine.disk && here.budgets.spill > Bytes(0)) here.machine.disk = known.disk;
    Plan& plan = held.plans[device];
    if (!recompute) {
      for (size_t i = 0; i < plan.actions.size(); ++i) {
        if (plan.actions[i] != Action::kRecompute) continue;
        plan.actions[i] = way_out(here.machine);
        plan.why[i] = Why::kNoRecipe;
      }
    }
    const PlanOptions options{.device = static_cast<uint32_t>(device), .recompute = recompute};
    simulate_again(plan, held.profile, here, options.device);
    keep_within(plan, held.profile, here, options);
    plan.lower_bound_s = lower_bound(held.profile, here.machine, here.budgets, options.device, recompute);
  }
  sum_up(held);
  return held;
}

std::vector<PlannedRecord> planned_records(const Course& course, std::span<const std::string> devices) {
  std::vector<PlannedRecord> planned;
  for (size_t i = 0; i < course.profile.records.size(); ++i) {
    const ProfiledRecord& record = course.profile.records[i];
    planned.push_back({.bytes = record.bytes,
                       .op = record.op,
                       .region = record.region,
                       .device = devices[record.device],
                       .action = to_string(course.action(i)),
                       .why = to_string(course.plan_of(i).why[i])});
  }
  return planned;
}

}  // namespace ebbtide
