// Budgets that follow what the whole process takes of a device, and what is done when it has no room.
#include <ebbtide/store/automatic_budgets.h>
#include <ebbtide/store/error.h>
#include <ebbtide/store/store_core.h>

#include <algorithm>
#include <utility>

namespace ebbtide {

/// `free`: of the device's memory, where nobody has said what the peak may be. REQUIRES: no other thread knows the tier.
/// Errors: ConfigError where a goal was given and nothing counts.
void StoreCore::aim_at_peak(DeviceTier& tier, std::shared_ptr<MemoryMeter> meter, std::optional<Bytes> free) {
  if (options_.device_budget || (!options_.device_memory && !free)) return;
  const Result<MemoryUsage> usage = meter->usage();
  if (!usage.ok()) {
    if (!options_.device_memory) return;
    throw ConfigError("device_memory: what is allocated of " + tier.device->name() + " is not known (" +
                      usage.failure().message + "): give device_budget instead");
  }
  const Bytes now = usage.value().now;
  Bytes most;
  if (options_.device_memory) {
    most = *options_.device_memory;
    tier.budget_given = true;
    if (now >= most)
      warnings_.push_back("device_memory is " + to_string(most) + ", and of " + tier.device->name() + " " +
                          to_string(now) + " are taken before anything is saved");
  } else {
    most = now + automatic_device_budget(usage.value().spare + *free);
  }
  tier.budget = std::max(Bytes(0), most - now);
  tier.goal =
      std::make_unique<PeakGoal>(most, options_.device_memory ? PeakGoal::Manners::kPlain : PeakGoal::Manners::kPolite);
  tier.meter = std::move(meter);
  tier.looks = tier.goal->looks();
  aims_ = true;
}

/// None where the goal asks for none. REQUIRES: the lock is not held.
std::optional<MemoryUsage> StoreCore::memory_usage(DeviceTier& tier) {
  const PeakGoal::Looks looks = tier.looks.load(std::memory_order_relaxed);
  if (looks == PeakGoal::Looks::kNone) return std::nullopt;
  const Result<MemoryUsage> usage = tier.meter->usage();
  if (!usage.ok()) return std::nullopt;
  if (looks == PeakGoal::Looks::kRestarted) tier.meter->restart_peak();
  return usage.value();
}

void StoreCore::note_memory_locked(DeviceTier& tier, const Pass& pass, const std::optional<MemoryUsage>& usage,
                                   const PeakGoal::Moment& moment) {
  if (!usage || !tier.goal) return;
  tier.goal->look(pass.stats_.number, *usage, {tier.held(), tier.alive}, moment);
  follow_goal_locked(tier);
}

StoreCore::Usages StoreCore::memory_at_end() {
  Usages usages;
  if (!aims_.load(std::memory_order_relaxed)) return usages;
  for (DeviceTier* tier : all_tiers()) {
    if (!tier->meter) continue;
    if (const Result<MemoryUsage> usage = tier->meter->usage(); usage.ok()) usages.emplace_back(tier, usage.value());
    if (tier->looks.load(std::memory_order_relaxed) == PeakGoal::Looks::kRestarted) tier->meter->restart_peak();
  }
  return usages;
}

void StoreCore::note_memory_at_end_locked(const Pass& pass, const Usages& usages) {
  for (const auto& [tier, usage] : usages) {
    if (!tier->goal) continue;
    tier->goal->pass_ended(pass.stats_.number, usage, {tier->held(), tier->alive});
    follow_goal_locked(*tier);
  }
}

void StoreCore::follow_goal_locked(DeviceTier& tier) {
  const PeakGoal& goal = *tier.goal;
  tier.budget = goal.budget();
  tier.looks.store(goal.looks(), std::memory_order_relaxed);
  if (goal.manners() == PeakGoal::Manners::kPlain && goal.others() > goal.most())
    warn_once_locked("device_memory " + tier.device->name(),
                     "device_memory is " + to_string(goal.most()) + ", and " + to_string(goal.others()) + " of " +
                         tier.device->name() +
                         " are taken without any saved tensor: no budget holds that; see report()");
}

MemoryStats StoreCore::memory_stats_locked(const DeviceTier& tier) const {
  if (!tier.goal || tier.goal->peak().bytes == Bytes(0)) return {};
  const PeakGoal& goal = *tier.goal;
  return {goal.most(), goal.peak().bytes, goal.peak().saved, goal.others(), PeakGoal::name_of(goal.peak().moment)};
}

/// The device had no room for `wanted` more, and all that can be fetched again was let go of: so must some be that has
/// not left. For good: the next passes are planned for what there is.
void StoreCore::ease_locked(DeviceTier& tier, Bytes wanted) {
  const Bytes before = tier.budget;
  const Bytes within = std::max(Bytes(0), tier.held() - wanted);
  if (tier.goal) {
    tier.goal->note_shortage(within);
    follow_goal_locked(tier);
  } else {
    tier.budget = std::min(within, tier.budget - tier.budget / 20);
  }
  warn_once_locked("no room " + tier.device->name(), tier.device->name() + " had no room for a saved tensor of " +
                                                         to_string(wanted) + " that came back: its budget is " +
                                                         to_string(tier.budget) + " from now on, not " +
                                                         to_string(before));
}

}  // namespace ebbtide
