// How a store watches its passes, and lets later ones follow the plans made of what it saw, or those that were saved.
#include <ebbtide/store/error.h>
#include <ebbtide/store/store_core.h>

#include <algorithm>
#include <utility>
#include <vector>

namespace ebbtide {
namespace {

/// What a cheap op makes in a second, where nothing has been measured: a slow machine's, and a small GPU's.
constexpr double kRedoneBytesPerSecond = 2e9;
constexpr double kRedoneBytesPerSecondOnDevice = 1e11;
/// Of a pass's computation: where a plan says that moving and redoing take so much more, costly recipes are weighed too.
/// To learn of them takes a redo of each shape, and two more where they read weights.
constexpr double kMuch = 0.1;
/// A slow SSD. A plan that tries it measures it: a program that could redo all would never know.
constexpr DiskModel kUnmeasuredDisk{.write = 5e8, .read = 1e9};

double speed(Bytes bytes, double seconds) noexcept {
  return seconds > 0 ? static_cast<double>(bytes.count()) / seconds : 0;
}

}  // namespace

/// REQUIRES: no other thread knows this core yet.
/// Errors: ConfigError.
void StoreCore::freeze_plan() {
  if (options_.plan.empty()) return;
  auto plans = read_plans(options_.plan);
  if (!plans.ok())
    throw ConfigError("plan='" + options_.plan + "' is not valid: accepted is a file that save_plan wrote, and " +
                      (plans.failure().code == FailureCode::kIo ? "this one cannot be read: " : "") +
                      plans.failure().message);
  planner_.freeze(std::move(plans).value());
  expect_planned_locked(host_);
}

/// With plans, a budget that is a share is known before the first pass.
void StoreCore::expect_planned_locked(DeviceTier& tier) noexcept {
  const Bytes most = planner_.frozen() ? planner_.most_saved(tier.index) : Bytes(0);
  if (most > Bytes(0)) note_saved_locked(tier, most);
}

/// A program that fits is looked at for two passes, for what-ifs; one that does not, or has its plans already, always.
bool StoreCore::worth_a_log_locked() const noexcept {
  return stats_.passes < 2 || planner_.frozen() || std::ranges::any_of(tiers_, [](const DeviceTier& tier) {
           return tier.expected_pass > tier.budget || tier.held() > tier.budget / 2;
         });
}

/// REQUIRES: the pass logs.
void StoreCore::note_pack_locked(Record& record, Pass& pass, const View& view) {
  pass.log_.pack({.bytes = view.footprint,
                  .moved = record.packed_bytes(),
                  .device = static_cast<uint32_t>(view.device),
                  .dtype = view.dtype,
                  .op = view.op,
                  .region = view.region != nullptr ? view.region->name.c_str() : nullptr},
                 std::chrono::steady_clock::now());
  if (!follow_plans_) return;
  const uint64_t so_far = pass.log_.prefix();
  if (!pass.course_ || record.index_ >= pass.course_->prefixes.size() ||
      pass.course_->prefixes[record.index_] != so_far)
    follow_locked(pass, planner_.find(so_far, pass.log_.records()));
  if (pass.course_) record.action_ = pass.course_->action(record.index_);
}

void StoreCore::follow_locked(Pass& pass, std::shared_ptr<const Course> course) {
  pass.learns_ = course && planner_.wants(*course);
  pass.course_ = std::move(course);
}

/// REQUIRES: its pass logs.
void StoreCore::note_unpack(Record& record, StreamId stream) {
  DeviceTimes* times = record.tier_->link ? record.pass_->marked_.load(std::memory_order_acquire) : nullptr;
  DeviceTimes::Point here;
  if (times != nullptr && times->marks_steps()) {
    times->add({record.tier_->device, record.tier_->link->clock, stream});
    here = times->here(*record.tier_->device, stream);
  }
  const auto now = std::chrono::steady_clock::now();
  std::lock_guard lock(mutex_);
  Pass& pass = *record.pass_;
  if (pass.ended_) return;
  pass.log_.unpack(record.index_, now);
  if (times != nullptr) times->step(pass.log_.steps() - 1, std::move(here));
  if (record.stays_)
    pass.log_.set_mobility(record.index_, Mobility::kStays);
  else if (record.resident_ && !record.unpacked_ && !record.left_ && !record.redone_ && record.resident_->storage &&
           record.resident_->storage->references() > 1)
    pass.log_.set_mobility(record.index_, Mobility::kElsewhere);
}

/// REQUIRES: record.recipe_, of this pass's records or others'.
void StoreCore::note_recipe_locked(Record& record, std::optional<double> seconds) {
  Pass& pass = *record.pass_;
  if (pass.ended_ || !pass.logs_) return;
  std::vector<uint32_t> inputs;
  for (const auto& input : record.recipe_->inputs()) {
    if (input->pass_.get() != &pass) return;
    inputs.push_back(input->index_);
  }
  if (!seconds) {
    if (!record.recipe_->cheap()) return;  // no plan may rest on a guess
    double speed = record.tier_->link ? kRedoneBytesPerSecondOnDevice : kRedoneBytesPerSecond;
    const auto& speeds = record.tier_->link ? redo_speed_on_devices_ : redo_speed_;
    if (const auto measured = speeds.find(record.recipe_->op()); measured != speeds.end()) speed = measured->second;
    seconds = static_cast<double>(record.footprint_.count()) / speed;
  }
  pass.log_.set_recipe(record.index_, *seconds, inputs, record.recipe_->group());
}

void StoreCore::note_redo_locked(Record& record, double seconds) {
  Pass& pass = *record.pass_;
  if (pass.ended_ || !pass.logs_) return;
  pass.log_.pause(seconds);
  if (record.tier_->link || seconds <= 0) return;  // a device has only been asked for it
  if (record.recipe_->group() != 0) return;        // one of several that were made
  pass.log_.set_redo_seconds(record.index_, seconds);
  double& mean = redo_speed_[record.recipe_->op()];
  const double now = speed(record.footprint_, seconds);
  mean = mean > 0 ? mean + (now - mean) / 8 : now;
}

Bytes StoreCore::disk_moved() const {
  if (!spill_) return Bytes(0);
  const SpillStats stats = spill_->stats();
  return stats.written + stats.read;
}

std::vector<Conditions> StoreCore::conditions_locked() const {
  std::optional<DiskModel> disk;
  if (spill_) {
    const SpillStats stats = spill_->stats();
    // What is under way makes it busy before a byte is through.
    if (stats.written > Bytes(0) && stats.read > Bytes(0) && stats.write_busy_s > 0 && stats.read_busy_s > 0)
      disk = DiskModel{.write = speed(stats.written, stats.write_busy_s), .read = speed(stats.read, stats.read_busy_s)};
  }
  std::vector<Conditions> all;
  for (const DeviceTier& tier : tiers_) {
    Conditions conditions;
    conditions.budgets.device = tier.budget;
    conditions.budgets.host = host_for_plans_locked(tier);
    conditions.budgets.spill = spill_ ? spill_->stats().budget : Bytes(0);
    conditions.machine.disk = disk;
    if (tier.link) {
      conditions.machine.link = LinkModel::of({tier.link->out.bandwidth(), tier.link->in.bandwidth()});
    } else if (spill_) {
      conditions.machine.disk = disk.value_or(kUnmeasuredDisk);
      conditions.machine.disk->compute_s_per_byte = kComputeSecondsPerByte;
    }
    all.push_back(std::move(conditions));
  }
  return all;
}

/// REQUIRES: a backward of the pass has just ended, and it is the first.
std::optional<Planner::Task> StoreCore::learn_locked(Pass& pass) {
  const auto now = std::chrono::steady_clock::now();
  pass.stats_.seconds = std::chrono::duration<double>(now - pass.began_).count();
  for (const DeviceTier& tier : tiers_) pass.stats_.device_peak += tier.peak_of_pass();
  if (!pass.logs_ || pass.log_.records() == 0 || closed_ || !follow_plans_) {
    planner_.passed_unseen();
    return std::nullopt;
  }
  pass.log_.end(now);
  // A link that has not been measured both ways would count as none, and all as kept.
  const bool may_plan = std::ranges::none_of(tiers_, [&](const DeviceTier& tier) {
    return tier.link && pass.on(tier.index).saved > Bytes(0) &&
           ((!pass.times_ && !plan_for_accelerators_) ||
            !LinkModel::of({tier.link->out.bandwidth(), tier.link->in.bandwidth()}));
  });
  const bool crowded = may_plan && std::ranges::any_of(tiers_, [&](const DeviceTier& tier) {
                         return pass.on(tier.index).saved > tier.budget;
                       });
  const bool followed = pass.course_ && pass.course_->kind == pass.log_.prefix();
  if (pass.times_) {
    constexpr size_t kMostUnlearned = 4;  // a host that is further ahead of its device learns of the later ones
    if (unlearned_.size() == kMostUnlearned) unlearned_.pop_front();
    const bool watched = !pass.course_ || pass.learns_;
    const double host_seconds = std::exchange(pass.stats_.seconds, 0);  // known when the device is through
    unlearned_.push_back({pass.stats_.number, host_seconds, watched ? pass.log_ : pass.log_.kind_alone(), pass.times_,
                          followed ? pass.course_ : nullptr, crowded});
    return std::nullopt;
  }
  return planner_.ended(
      {.log = pass.log_,
       .seconds = pass.stats_.seconds,
       .followed = followed ? pass.course_.get() : nullptr,
       .on = crowded || planner_.frozen() ? conditions_locked() : std::vector<Conditions>(),
       .copying_s = pass.on(host_.index).saved > Bytes(0)
                        ? kComputeSecondsPerByte * static_cast<double>((disk_moved() - pass.disk_before_).count())
                        : 0,
       .crowded = crowded});
}

std::vector<PlannedRecord> StoreCore::plan() const {
  std::shared_ptr<const Course> course;
  std::vector<std::string> devices;
  {
    std::lock_guard lock(mutex_);
    course = planner_.last();
    for (const DeviceTier& tier : tiers_) devices.push_back(tier.device->name());
  }
  return course ? planned_records(*course, devices) : std::vector<PlannedRecord>();
}

std::vector<SavedPlan> StoreCore::plans_in_force() const {
  std::lock_guard lock(mutex_);
  return planner_.in_force();
}

/// What takes long is done without the lock.
void StoreCore::follow(std::vector<SavedPlan> plans) {
  std::vector<Conditions> on;
  {
    std::lock_guard lock(mutex_);
    if (planner_.frozen()) return;
    on = conditions_locked();
  }
  std::vector<std::shared_ptr<const Course>> held;
  held.reserve(plans.size());
  for (const SavedPlan& plan : plans)
    held.push_back(
        std::make_shared<const Course>(held_within(plan.course, on, /*recompute=*/options_.recompute.value_or(true))));
  std::lock_guard lock(mutex_);
  planner_.share(std::move(plans), std::move(held));
}

std::optional<SavedProfile> StoreCore::profile() const {
  std::lock_guard lock(mutex_);
  SavedProfile saved;
  if (const Profile* profile = planner_.last_profile())
    saved.profile = *profile;
  else if (last_log_.has_backward())
    saved.profile = last_log_.profile();
  else
    return std::nullopt;
  const auto conditions = conditions_locked();
  for (const DeviceTier& tier : tiers_) saved.devices.push_back({tier.device->name(), conditions[tier.index]});
  saved.recompute = options_.recompute.value_or(true);
  return saved;
}

void StoreCore::learn_again() noexcept {
  std::lock_guard lock(mutex_);
  planner_.look_again();
}

void StoreCore::adopt(const Planner::Task& task) noexcept {
  try {
    auto course = task.run();
    std::lock_guard lock(mutex_);
    const bool costs_much = course && course->predicted_s > (1 + kMuch) * course->profile.seconds;
    planner_.adopt(task, std::move(course));
    if (costs_much && !weigh_costly_recipes_.exchange(true)) planner_.look_again();
  } catch (const std::exception&) {
    // No memory to plan with: passes go on as they did.
  }
}

}  // namespace ebbtide
