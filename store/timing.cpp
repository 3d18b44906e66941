// When accelerators' passes did what: marks on their compute streams, read when the devices are through, some steps later.
#include <ebbtide/store/store_core.h>

#include <algorithm>
#include <utility>

namespace ebbtide {

/// The event after which the bytes of a pack are there; with its time where the pass may be learned from. Null: none
/// could be made. `pass`: null where the pack begins one.
EventPtr StoreCore::mark_pack(DeviceTier& tier, const Pass* pass, StreamId stream) {
  const DeviceTimes* times = pass != nullptr ? pass->marked_.load(std::memory_order_acquire) : nullptr;
  const bool wanted = pass == nullptr ||
                      (pass->logs_ && (times == nullptr || times->marks_steps() || !times->of(*tier.device, stream)));
  if (wanted && follow_plans_ && tier.times) {
    Result<EventPtr> timed = tier.device->record_timed(stream);
    if (timed.ok()) return std::move(timed).value();
    if (timed.failure().code == FailureCode::kUnsupported) tier.times = false;
  }
  Result<EventPtr> event = tier.device->record(stream);
  return event.ok() ? std::move(event).value() : nullptr;
}

/// REQUIRES: the pass has just logged the pack.
void StoreCore::mark_pack_locked(Pass& pass, const DeviceTier& tier, StreamId stream, const EventPtr& event) const {
  const DeviceTimes::Place here{tier.device, tier.link->clock, stream};
  bool timed = true;
  if (!pass.times_) {
    if (!event || !tier.times || !follow_plans_) return;
    pass.times_ = std::make_shared<DeviceTimes>(here);
    pass.marked_.store(pass.times_.get(), std::memory_order_release);
  } else if (!tier.times) {
    return pass.times_->spoil();
  } else if (pass.times_->of(*tier.device, stream)) {
    timed = pass.times_->marks_steps();
  } else {
    pass.times_->add(here);
  }
  if (!pass.learns_ && pass.course_) pass.times_->mark_steps(false);
  pass.times_->step(pass.log_.steps() - 1, {tier.device.get(), stream, timed ? event : nullptr});
}

void StoreCore::mark_redo(const Record& record, StreamId stream, Redo redo) {
  DeviceTimes* times = record.pass_->marked_.load(std::memory_order_acquire);
  if (times == nullptr || !times->marks_steps()) return;
  DeviceTimes::Point here = times->here(*record.tier_->device, stream);
  // What a region takes is no one record's.
  const Bytes made = record.recipe_->asked_for() ? Bytes(0) : record.footprint_;
  if (redo == Redo::kBegins)
    times->redo_began({record.index_, record.recipe_->op(), made, 0}, std::move(here));
  else
    times->redo_ended(record.index_, here);
}

void StoreCore::mark_end(Pass& pass, int task, std::optional<StreamId> stream) noexcept {
  DeviceTimes* times = pass.marked_.load(std::memory_order_acquire);
  if (times == nullptr) return;
  {
    std::lock_guard lock(mutex_);
    if (pass.ended_ || pass.tasks_.size() != 1 || !pass.tasks_.contains(task)) return;
  }
  if (stream)
    times->ended();
  else
    times->spoil();
}

/// Never waits: what the device is not through with is looked at another time.
void StoreCore::learn_of_devices() noexcept {
  for (;;) {
    std::shared_ptr<DeviceTimes> times;
    {
      std::lock_guard lock(mutex_);
      if (unlearned_.empty() || in_child_) return;
      times = unlearned_.front().times;
    }
    try {
      const DeviceTimes::Answer answer = times->look();
      if (answer.state == DeviceTimes::State::kNotYet) return;
      std::optional<Planner::Task> to_plan;
      {
        std::lock_guard lock(mutex_);
        if (unlearned_.empty() || unlearned_.front().times != times) return;  // another thread has looked
        if (answer.state == DeviceTimes::State::kKnown) {
          learn_locked(answer.known, to_plan);
        } else {
          if (last_pass_.number == unlearned_.front().number) last_pass_.seconds = unlearned_.front().host_seconds;
          planner_.passed_unseen();
        }
        unlearned_.pop_front();
      }
      if (to_plan) adopt(*to_plan);
    } catch (const std::exception&) {
      return times->spoil();  // no memory to learn with: passes go on as they did
    }
  }
}

/// REQUIRES: they are those of the first that is unlearned.
void StoreCore::learn_locked(const DeviceTimes::Known& known, std::optional<Planner::Task>& to_plan) {
  Unlearned& pass = unlearned_.front();
  if (last_pass_.number == pass.number) last_pass_.seconds = known.seconds;
  if (known.all_steps && pass.log.steps() > 0) {
    pass.log.retime(known.steps, known.compute_s);
    for (const DeviceTimes::Redo& redo : known.redos) {
      if (redo.seconds <= 0 || redo.bytes == Bytes(0)) continue;
      pass.log.set_redo_seconds(redo.record, redo.seconds);
      double& mean = redo_speed_on_devices_[redo.op];
      const double now = static_cast<double>(redo.bytes.count()) / redo.seconds;
      mean = mean > 0 ? mean + (now - mean) / 8 : now;
    }
  }
  to_plan = planner_.ended({.log = pass.log,
                            .seconds = known.seconds,
                            .followed = pass.followed.get(),
                            .on = pass.crowded || planner_.frozen() ? conditions_locked() : std::vector<Conditions>(),
                            .crowded = pass.crowded,
                            .timed = known.all_steps && pass.log.steps() > 0});
}

}  // namespace ebbtide
