#include <ebbtide/store/planner.h>

#include <algorithm>
#include <cmath>
#include <utility>

namespace ebbtide {
namespace {

/// As if nothing had taken time from the computation.
Profile undisturbed(Profile profile, double copying_s) {
  const double share = profile.seconds > copying_s ? 1 - copying_s / profile.seconds : 1;
  profile.seconds *= share;
  for (ProfiledStep& step : profile.steps) step.at *= share;
  return profile;
}

/// A pass that follows a plan looks for the recipes that the plan uses, and for no others.
void keep_recipes(Profile& profile, const Profile& known) {
  for (size_t i = 0; i < profile.records.size(); ++i)
    if (!profile.records[i].recipe) profile.records[i].recipe = known.records[i].recipe;
}

bool differs(double before, double now, double by) noexcept {
  return std::abs(now - before) > by * before;
}

bool differs(const DiskModel& before, const DiskModel& now, double by) noexcept {
  return differs(before.write, now.write, by) || differs(before.read, now.read, by);
}
bool differs(const LinkModel& before, const LinkModel& now, double by) noexcept {
  return differs(before.out.alone, now.out.alone, by) || differs(before.in.alone, now.in.alone, by);
}
template <class Model>
bool differs(const std::optional<Model>& before, const std::optional<Model>& now, double by) noexcept {
  if (before.has_value() != now.has_value()) return true;
  return before && differs(*before, *now, by);
}

}  // namespace

std::shared_ptr<const Course> Planner::find(uint64_t prefix, size_t packs) const noexcept {
  std::shared_ptr<const Course> latest;
  for (const Kind& kind : kinds_) {
    const auto& course = kind.course;
    if (!course || packs > course->prefixes.size() || course->prefixes[packs - 1] != prefix) continue;
    if (kind.id == kinds_.front().then) return course;
    if (!latest) latest = course;
  }
  return latest;
}

bool Planner::wants(const Course& course) const noexcept {
  const auto kind = std::ranges::find(kinds_, course.kind, &Kind::id);
  return kind != kinds_.end() && kind->wanted > 0;
}

bool Planner::budgets_changed(const std::vector<Conditions>& before, const std::vector<Conditions>& now) noexcept {
  return !std::ranges::equal(before, now, [](const Conditions& a, const Conditions& b) {
    return a.budgets.device == b.budgets.device && a.budgets.host == b.budgets.host;
  });
}

bool Planner::speeds_changed(const std::vector<Conditions>& before, const std::vector<Conditions>& now) noexcept {
  return !std::ranges::equal(before, now, [](const Conditions& a, const Conditions& b) {
    return !differs(a.machine.link, b.machine.link, kChanged) && !differs(a.machine.disk, b.machine.disk, kChanged);
  });
}

/// The kind of the pass that has just ended, first in the list now. Null where it has no frozen plan.
Planner::Kind* Planner::latest(uint64_t id) {
  if (!kinds_.empty()) kinds_.front().then = id;
  const auto found = std::ranges::find(kinds_, id, &Kind::id);
  if (found == kinds_.end()) {
    if (frozen_) return nullptr;
    if (kinds_.size() == kMostKinds) kinds_.pop_back();
    kinds_.push_front({.id = id});
  } else if (found != kinds_.begin()) {
    Kind moved = std::move(*found);
    kinds_.erase(found);
    kinds_.push_front(std::move(moved));
  }
  return &kinds_.front();
}

std::optional<Planner::Task> Planner::to_hold_within(const Kind& kind, const std::vector<Conditions>& on) const {
  std::vector<Conditions> before = kind.course->on;  // of devices that this store has not met, too
  if (before.size() > on.size()) before.resize(on.size());
  if (!budgets_changed(before, on)) return std::nullopt;
  Task task;
  task.on_ = on;
  task.known_ = kind.saved;
  task.recompute_ = recompute_;
  task.frozen_ = true;
  return task;
}

std::optional<Planner::Task> Planner::ended(const Ended& pass) {
  last_ = nullptr;
  const uint64_t id = pass.log.prefix();
  Kind* const found = latest(id);
  if (found == nullptr) return std::nullopt;
  Kind& kind = *found;
  if (pass.followed != nullptr && kind.course.get() == pass.followed) last_ = kind.course;
  if (kind.saved) return to_hold_within(kind, pass.on);
  if (!pass.crowded) return std::nullopt;
  ++kind.passes;

  // The first pass of a kind grows pools and warms caches: its times say little.
  if (kind.passes == 1) {
    kind.wanted = 1;
    return std::nullopt;
  }
  if (kind.wanted == 0 && last_) {
    const bool as_planned = !differs(last_->predicted_s, pass.seconds, kOff) && !speeds_changed(last_->on, pass.on);
    kind.off = as_planned ? 0 : kind.off + 1;
    const bool promised_other = budgets_changed(last_->on, pass.on);
    if (promised_other || kind.off >= kind.off_to_replan) {
      kind.off = 0;
      kind.off_to_replan = promised_other ? kOffToReplan : std::min(kind.off_to_replan * 2, kMostOffToReplan);
      kind.wanted = 1;
      kind.profiles.clear();
    }
  }
  if (kind.wanted == 0 || !pass.timed) return std::nullopt;
  Profile profile = undisturbed(pass.log.profile(), pass.copying_s);
  if (pass.followed != nullptr) keep_recipes(profile, pass.followed->profile);
  if (profile.invalid()) return std::nullopt;
  kind.profiles.push_back(std::move(profile));
  if (kind.profiles.size() > kProfiles) kind.profiles.erase(kind.profiles.begin());
  if (--kind.wanted > 0) return std::nullopt;
  // A first plan at once, a better one when there are medians.
  if (kind.passes == 2) kind.wanted = kProfiles - 1;

  Task task;
  task.kind_ = id;
  task.prefixes_ = pass.log.prefixes();
  task.profiles_ = kind.profiles;
  task.on_ = pass.on;
  task.known_ = kind.course;
  task.recompute_ = recompute_;
  return task;
}

std::shared_ptr<const Course> Planner::Task::run() const {
  if (frozen_) return std::make_shared<const Course>(ebbtide::held_within(*known_, on_, recompute_));
  auto profile = median(profiles_);
  if (!profile) return nullptr;
  auto course = std::make_shared<Course>(make_course(std::move(*profile), on_, recompute_, known_.get()));
  course->kind = kind_;
  course->prefixes = prefixes_;
  return course;
}

void Planner::adopt(const Task& task, std::shared_ptr<const Course> course) {
  if (!course) return;
  const auto kind = std::ranges::find(kinds_, course->kind, &Kind::id);
  if (kind == kinds_.end()) return;          // forgotten meanwhile
  if (kind->saved && !task.frozen_) return;  // another store's came meanwhile
  if (!kind->saved) ++plans_;
  kind->off = 0;
  kind->course = std::move(course);
}

void Planner::look_again() noexcept {
  if (frozen_) return;
  for (Kind& kind : kinds_) {
    if (kind.wanted > 0 || kind.saved) continue;  // they are anyway, or never
    kind.wanted = kProfiles - 1;
    kind.profiles.clear();
  }
}

void Planner::freeze(std::vector<SavedPlan> plans) {
  frozen_ = true;
  for (SavedPlan& plan : plans) {
    Kind kind{.id = plan.course.kind, .then = plan.then};
    kind.course = kind.saved = std::make_shared<const Course>(std::move(plan.course));
    kinds_.push_back(std::move(kind));
  }
}

void Planner::share(std::vector<SavedPlan> plans, std::vector<std::shared_ptr<const Course>> held) {
  for (size_t i = 0; i < plans.size(); ++i) {
    const uint64_t id = plans[i].course.kind;
    auto kind = std::ranges::find(kinds_, id, &Kind::id);
    if (kind == kinds_.end()) {
      if (kinds_.size() == kMostKinds) kinds_.pop_back();
      kind = kinds_.insert(kinds_.end(), {.id = id, .then = plans[i].then});
    }
    kind->wanted = 0;
    kind->profiles.clear();
    kind->saved = std::make_shared<const Course>(std::move(plans[i].course));
    kind->course = std::move(held[i]);
    ++plans_;
  }
}

void Planner::hold_within(const std::vector<Conditions>& on) {
  for (Kind& kind : kinds_) kind.course = std::make_shared<const Course>(held_within(*kind.saved, on, recompute_));
}

std::vector<SavedPlan> Planner::in_force() const {
  std::vector<SavedPlan> plans;
  for (const Kind& kind : kinds_)
    if (kind.course) plans.push_back({*kind.course, kind.then});
  return plans;
}

Bytes Planner::most_saved(size_t device) const noexcept {
  Bytes most;
  for (const Kind& kind : kinds_) {
    if (!kind.course) continue;
    Bytes saved;
    for (const ProfiledRecord& record : kind.course->profile.records)
      if (record.device == device) saved += record.bytes;
    most = std::max(most, saved);
  }
  return most;
}

const Profile* Planner::last_profile() const noexcept {
  if (kinds_.empty()) return nullptr;
  const Kind& kind = kinds_.front();
  if (kind.course) return &kind.course->profile;
  return kind.profiles.empty() ? nullptr : &kind.profiles.back();
}

}  // namespace ebbtide
