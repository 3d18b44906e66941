#include <ebbtide/store/lane_model.h>
#include <ebbtide/store/simulator.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <unordered_map>
#include <utility>

namespace ebbtide {
namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();
constexpr uint32_t kAlone = std::numeric_limits<uint32_t>::max();

/// First in, first out; keeps its memory when it is cleared.
template <class T>
class Fifo {
 public:
  bool empty() const noexcept { return head_ == items_.size(); }
  const T& front() const noexcept { return items_[head_]; }
  void pop() noexcept { ++head_; }
  void push(T item) { items_.push_back(std::move(item)); }
  void clear() noexcept {
    items_.clear();
    head_ = 0;
  }

 private:
  std::vector<T> items_;
  size_t head_ = 0;
};

}  // namespace

class Simulator::Run {
 public:
  Run(const Profile& profile, const Machine& machine, const Budgets& budgets, uint32_t device);
  Simulated operator()(std::span<const Action> actions);
  std::vector<Action> became() const;
  const std::vector<uint32_t>& order() const noexcept { return order_; }

 private:
  enum class Place : uint8_t {
    kUnborn,     // not packed yet
    kAway,       // below, or to be redone, or no more
    kResident,   // and stays so
    kLeaving,    // its copy out is under way
    kClean,      // a lower copy exists: may be dropped
    kReturning,  // memory is reserved for it
  };
  struct Fixed {       // of a record
    int64_t held = 0;  // bytes in the device's budget
    int64_t moved = 0;
    double redo_s = 0;
    uint32_t first_input = 0, last_input = 0;
    uint32_t group = kAlone;
    uint32_t packed = 0, last_unpack = 0;  // by place in `steps_`
    bool may_leave = false, may_redo = false;
  };
  struct State {  // of a record, in one run
    Action action = Action::kKeep;
    Place place = Place::kUnborn;
    bool needed = false;  // in `order_`
    bool dead = false;
    bool left = false;     // it was dropped at least once
    bool in_host = false;  // its copy holds host memory until it dies
    bool read = false;     // from the disk below a link, or about to be
    uint32_t uses = 0;     // redos still to come that read it
    double ready = 0;      // from then on the copy in may begin; of what is spilled, its read
    double arrives = 0;
  };
  struct Group {  // one run makes them
    std::vector<uint32_t> records;
    double redo_s = 0;  // that the run is still to take
  };
  struct Leaving {
    uint32_t record;
    double end;  // as the lane's end() reads it
  };
  struct HostFree {
    double at;
    int64_t bytes;
  };

  void prepare(std::span<const Action> actions);
  Action possible(const Fixed& fixed, Action action) const noexcept;
  void need(uint32_t record, size_t step);
  void need_alone(uint32_t record);
  void reset();

  void pack(uint32_t record);
  void leave(uint32_t record);
  bool below_takes(Action action, int64_t bytes, double* ready);
  void unpack(uint32_t first_item, uint32_t last_item);
  void die(uint32_t record);
  void release(uint32_t record);

  double next_event() const noexcept;
  void compute_for_copy(int64_t bytes);
  void advance(double to);
  void stall_until(double to);
  void pump();
  void pump_reads();
  void squeeze_in();
  void reserve(uint32_t record);
  bool start_read(uint32_t record, bool squeezed = false);
  void take_in_host(int64_t bytes) noexcept;
  bool make_room(int64_t bytes);
  bool drop_oldest();
  void drop(uint32_t record);
  void hold(int64_t bytes) noexcept;

  const Budgets budgets_;
  const bool has_host_;                               // else the device is host memory
  const bool has_disk_below_;                         // below host memory
  std::optional<LaneModel> first_lane_, first_disk_;  // as they are when a run begins
  double copying_s_per_byte_ = 0;
  std::vector<Fixed> fixed_;
  std::vector<uint32_t> inputs_;
  std::vector<Group> groups_;
  std::vector<ProfiledStep> steps_;
  double seconds_;

  std::vector<State> states_;
  std::vector<uint32_t> order_;      // records that come back or are redone, by first need
  std::vector<uint32_t> last_item_;  // of each step: its own items and all before it end here
  std::vector<std::pair<uint32_t, uint32_t>> path_;

  std::optional<LaneModel> lane_, disk_;  // from the device; below a link
  double now_ = 0, delay_ = 0;
  bool backward_ = false;
  uint32_t next_item_ = 0, next_read_ = 0;  // reserved and read is all before
  int64_t held_ = 0;
  int64_t host_ = 0, spilled_ = 0;
  Fifo<Leaving> leaving_;
  Fifo<HostFree> writes_, arrivals_;
  Fifo<uint32_t> clean_;
  std::optional<uint32_t> passing_;  // just packed, and to be redone: gone at the next step
  Simulated result_;
};

Simulator::Run::Run(const Profile& profile, const Machine& machine, const Budgets& budgets, uint32_t device)
    : budgets_(budgets),
      has_host_(machine.link.has_value()),
      has_disk_below_(machine.link && machine.disk),
      seconds_(profile.seconds) {
  if (machine.link) {
    first_lane_.emplace(*machine.link);
    if (machine.disk) first_disk_.emplace(*machine.disk);
  } else if (machine.disk) {
    first_lane_.emplace(*machine.disk);
    copying_s_per_byte_ = machine.disk->compute_s_per_byte;
  }
  fixed_.resize(profile.records.size());
  std::unordered_map<uint32_t, uint32_t> groups;
  for (size_t i = 0; i < fixed_.size(); ++i) {
    const ProfiledRecord& record = profile.records[i];
    Fixed& fixed = fixed_[i];
    if (record.device != device || record.mobility == Mobility::kElsewhere) continue;
    fixed.held = record.bytes.count();
    if (record.mobility == Mobility::kStays || fixed.held == 0) continue;
    fixed.moved = record.moved.count();
    fixed.may_leave = first_lane_.has_value();
    if (!record.recipe) continue;
    fixed.may_redo = true;
    fixed.redo_s = record.recipe->seconds;
    fixed.first_input = static_cast<uint32_t>(inputs_.size());
    inputs_.insert(inputs_.end(), record.recipe->inputs.begin(), record.recipe->inputs.end());
    fixed.last_input = static_cast<uint32_t>(inputs_.size());
    if (!record.recipe->group) continue;
    fixed.group = groups.try_emplace(*record.recipe->group, static_cast<uint32_t>(groups.size())).first->second;
    groups_.resize(groups.size());
    groups_[fixed.group].records.push_back(static_cast<uint32_t>(i));
  }
  for (const ProfiledStep& step : profile.steps)
    if (fixed_[step.record].held > 0) steps_.push_back(step);
  for (uint32_t i = 0; i < steps_.size(); ++i) {
    if (steps_[i].what == ProfiledStep::What::kPack) fixed_[steps_[i].record].packed = i;
    if (steps_[i].what == ProfiledStep::What::kUnpack) fixed_[steps_[i].record].last_unpack = i;
  }
  last_item_.resize(steps_.size());
  states_.resize(fixed_.size());
}

Simulated Simulator::Run::operator()(std::span<const Action> actions) {
  reset();
  prepare(actions);
  for (size_t i = 0; i < steps_.size(); ++i) {
    const ProfiledStep& step = steps_[i];
    advance(step.at + delay_);
    if (passing_) drop(*std::exchange(passing_, std::nullopt));
    switch (step.what) {
      case ProfiledStep::What::kPack:
        pack(step.record);
        break;
      case ProfiledStep::What::kUnpack:
        backward_ = true;
        unpack(i == 0 ? 0 : last_item_[i - 1], last_item_[i]);
        break;
      case ProfiledStep::What::kDeath:
        die(step.record);
        break;
    }
  }
  result_.step_s = seconds_ + delay_;
  return result_;
}

std::vector<Action> Simulator::Run::became() const {
  std::vector<Action> actions(states_.size());
  for (size_t i = 0; i < actions.size(); ++i) actions[i] = states_[i].left ? states_[i].action : Action::kKeep;
  return actions;
}

void Simulator::Run::reset() {
  std::ranges::fill(states_, State());
  order_.clear();
  lane_ = first_lane_;
  disk_ = first_disk_;
  now_ = delay_ = 0;
  backward_ = false;
  next_item_ = next_read_ = 0;
  held_ = 0;
  host_ = spilled_ = 0;
  leaving_.clear();
  writes_.clear();
  arrivals_.clear();
  clean_.clear();
  passing_.reset();
  result_ = Simulated();
}

Action Simulator::Run::possible(const Fixed& fixed, Action action) const noexcept {
  if (action == Action::kRecompute) return fixed.may_redo ? action : Action::kKeep;
  if (action == Action::kKeep || !fixed.may_leave) return Action::kKeep;
  return !has_host_ ? Action::kSpill : has_disk_below_ ? action : Action::kOffload;
}

/// Puts all that comes back in order of first need. A redo's inputs are needed before it.
void Simulator::Run::prepare(std::span<const Action> actions) {
  for (size_t i = 0; i < states_.size(); ++i) states_[i].action = possible(fixed_[i], actions[i]);
  for (Group& group : groups_) {
    double until = group.redo_s = 0;
    for (const uint32_t record : group.records) {
      until += fixed_[record].redo_s;
      if (states_[record].action == Action::kRecompute && fixed_[record].last_unpack > 0) group.redo_s = until;
    }
  }
  for (size_t i = 0; i < steps_.size(); ++i) {
    if (steps_[i].what == ProfiledStep::What::kUnpack) need(steps_[i].record, i);
    last_item_[i] = static_cast<uint32_t>(order_.size());
  }
}

/// With what is made by the same run, as far as it will be asked for.
void Simulator::Run::need(uint32_t wanted, size_t step) {
  const size_t before = order_.size();
  need_alone(wanted);
  for (size_t i = before; i < order_.size(); ++i) {
    const uint32_t group = fixed_[order_[i]].group;
    if (group == kAlone || states_[order_[i]].action != Action::kRecompute) continue;
    for (const uint32_t record : groups_[group].records)
      if (states_[record].action == Action::kRecompute && !states_[record].needed && fixed_[record].packed < step &&
          step < fixed_[record].last_unpack)
        need_alone(record);
  }
}

void Simulator::Run::need_alone(uint32_t wanted) {
  const auto settle = [&](uint32_t record) {
    State& state = states_[record];
    if (state.needed || state.action == Action::kKeep) return true;
    if (state.action == Action::kRecompute && fixed_[record].first_input != fixed_[record].last_input) return false;
    state.needed = true;
    order_.push_back(record);
    return true;
  };
  if (settle(wanted)) return;
  path_.emplace_back(wanted, fixed_[wanted].first_input);
  while (!path_.empty()) {
    auto& [record, next_input] = path_.back();
    if (next_input == fixed_[record].last_input) {
      states_[record].needed = true;
      order_.push_back(record);
      path_.pop_back();
      continue;
    }
    const uint32_t input = inputs_[next_input++];
    ++states_[input].uses;
    if (!settle(input)) path_.emplace_back(input, fixed_[input].first_input);
  }
}

void Simulator::Run::pack(uint32_t record) {
  State& state = states_[record];
  const int64_t bytes = fixed_[record].held;
  while (!make_room(bytes)) {
    const double next = next_event();
    if (next == kNever) {
      ++result_.squeezed;
      break;
    }
    stall_until(next);
  }
  hold(bytes);
  state.place = Place::kResident;
  if (state.action == Action::kRecompute)
    passing_ = record;
  else if (state.action != Action::kKeep)
    leave(record);
}

/// It stays where the tiers below have no room and none can come.
void Simulator::Run::leave(uint32_t record) {
  State& state = states_[record];
  const int64_t bytes = fixed_[record].moved;
  double begin = now_;
  if (!below_takes(state.action, bytes, &begin)) return;
  const double pushed = lane_->push_out(begin, static_cast<double>(bytes));
  state.place = Place::kLeaving;
  state.ready = lane_->end(pushed);
  leaving_.push({record, pushed});
  if (!has_host_) {
    result_.written += Bytes(bytes);
    compute_for_copy(bytes);
    return;
  }
  result_.moved_out += Bytes(bytes);
  state.in_host = state.action == Action::kOffload;
  if (state.in_host) return;
  result_.written += Bytes(bytes);
  state.ready = disk_->end(disk_->push_out(state.ready, static_cast<double>(bytes)));
  writes_.push({state.ready, bytes});
}

/// Makes room below, by waiting for writes to the disk. Copies out are in order, so none that comes later is overtaken.
bool Simulator::Run::below_takes(Action action, int64_t bytes, double* begin) {
  const bool to_disk = !has_host_ || action == Action::kSpill;
  if (to_disk && spilled_ + bytes > budgets_.spill.count()) return false;
  if (has_host_) {
    while (host_ + bytes > budgets_.host.count()) {
      if (writes_.empty()) return false;
      *begin = std::max(*begin, writes_.front().at);
      host_ -= writes_.front().bytes;
      writes_.pop();
    }
    take_in_host(bytes);
  }
  if (to_disk) spilled_ += bytes;
  return true;
}

void Simulator::Run::take_in_host(int64_t bytes) noexcept {
  host_ += bytes;
  result_.host_peak = std::max(result_.host_peak, Bytes(host_));
}

void Simulator::Run::compute_for_copy(int64_t bytes) {
  if (copying_s_per_byte_ == 0) return;
  const double seconds = copying_s_per_byte_ * static_cast<double>(bytes);
  result_.copying_s += seconds;
  delay_ += seconds;
  advance(now_ + seconds);
}

void Simulator::Run::unpack(uint32_t first_item, uint32_t last_item) {
  pump();
  for (uint32_t item = first_item; item < last_item; ++item) {
    while (next_item_ <= item) {
      if (const double next = next_event(); next != kNever) {
        stall_until(next);
      } else {
        ++result_.squeezed;
        squeeze_in();
        pump();
      }
    }
    const uint32_t record = order_[item];
    State& state = states_[record];
    const Fixed& fixed = fixed_[record];
    if (state.place == Place::kReturning) {
      if (state.action == Action::kRecompute) {
        const double seconds = fixed.group == kAlone ? fixed.redo_s : std::exchange(groups_[fixed.group].redo_s, 0);
        result_.recompute_s += seconds;
        delay_ += seconds;
        advance(now_ + seconds);
      } else {
        stall_until(state.arrives);
        compute_for_copy(fixed.moved);
      }
      state.place = Place::kResident;
    }
    if (state.action != Action::kRecompute) continue;
    for (uint32_t i = fixed.first_input; i < fixed.last_input; ++i) {
      State& input = states_[inputs_[i]];
      if (--input.uses == 0 && input.dead) release(inputs_[i]);
    }
  }
}

void Simulator::Run::die(uint32_t record) {
  states_[record].dead = true;
  if (states_[record].uses == 0) release(record);
}

void Simulator::Run::release(uint32_t record) {
  State& state = states_[record];
  const Fixed& fixed = fixed_[record];
  if (std::exchange(state.place, Place::kAway) != Place::kAway) held_ -= fixed.held;
  if (std::exchange(state.in_host, false)) host_ -= fixed.moved;
  if (backward_) pump();
}

/// When memory of the device or the host is next let go of by a transfer.
double Simulator::Run::next_event() const noexcept {
  double next = kNever;
  if (!leaving_.empty()) next = lane_->end(leaving_.front().end);
  if (!writes_.empty()) next = std::min(next, writes_.front().at);
  if (!arrivals_.empty()) next = std::min(next, arrivals_.front().at);
  return next;
}

/// Plays what transfers do until then.
void Simulator::Run::advance(double to) {
  for (double at = next_event(); at <= to && at < kNever; at = next_event()) {
    now_ = std::max(now_, at);
    if (!leaving_.empty() && lane_->end(leaving_.front().end) == at) {
      const uint32_t record = leaving_.front().record;
      leaving_.pop();
      if (states_[record].place == Place::kLeaving) {
        states_[record].place = Place::kClean;
        clean_.push(record);
      }
    } else {
      Fifo<HostFree>& frees = !writes_.empty() && writes_.front().at == at ? writes_ : arrivals_;
      host_ -= frees.front().bytes;
      frees.pop();
    }
    if (backward_) pump();
  }
  now_ = std::max(now_, to);
}

void Simulator::Run::stall_until(double to) {
  if (to <= now_) return advance(now_);
  result_.stall_s += to - now_;
  delay_ += to - now_;
  advance(to);
}

/// Reserves memory as far ahead as there is room, and starts what fills it.
void Simulator::Run::pump() {
  if (has_disk_below_) pump_reads();
  for (; next_item_ < order_.size(); ++next_item_) {
    const uint32_t record = order_[next_item_];
    State& state = states_[record];
    if (state.place == Place::kUnborn) return;
    if (state.place == Place::kAway) {
      // It was passed over as long as it was still there.
      if (state.action == Action::kSpill && has_host_ && !state.read && !start_read(record)) return;
      if (!make_room(fixed_[record].held)) return;
      reserve(record);
    } else {
      state.place = Place::kResident;  // it is there still, and wanted
    }
  }
}

void Simulator::Run::pump_reads() {
  for (; next_read_ < order_.size(); ++next_read_) {
    const uint32_t record = order_[next_read_];
    const State& state = states_[record];
    if (state.action != Action::kSpill || state.place != Place::kAway || state.read) continue;
    if (!start_read(record)) return;
  }
}

/// Whether host memory has room for it.
bool Simulator::Run::start_read(uint32_t record, bool squeezed) {
  State& state = states_[record];
  const int64_t bytes = fixed_[record].moved;
  if (!squeezed && host_ + bytes > budgets_.host.count()) return false;
  take_in_host(bytes);
  state.read = true;
  state.ready = disk_->push_in(std::max(now_, state.ready), static_cast<double>(bytes));
  result_.read += Bytes(bytes);
  return true;
}

void Simulator::Run::reserve(uint32_t record) {
  State& state = states_[record];
  const int64_t bytes = fixed_[record].moved;
  hold(fixed_[record].held);
  state.place = Place::kReturning;
  if (state.action == Action::kRecompute) return;
  state.arrives = lane_->push_in(std::max(now_, state.ready), static_cast<double>(bytes));
  (has_host_ ? result_.moved_in : result_.read) += Bytes(bytes);
  if (has_host_ && state.action == Action::kSpill) arrivals_.push({state.arrives, bytes});
}

/// The next item has no room, and none can come: it is wanted now.
void Simulator::Run::squeeze_in() {
  const uint32_t record = order_[next_item_];
  const State& state = states_[record];
  if (state.action == Action::kSpill && has_host_ && !state.read) {
    start_read(record, /*squeezed=*/true);
    return;
  }
  reserve(record);
  ++next_item_;
}

bool Simulator::Run::make_room(int64_t bytes) {
  while (held_ + bytes > budgets_.device.count())
    if (!drop_oldest()) return false;
  return true;
}

bool Simulator::Run::drop_oldest() {
  for (; !clean_.empty(); clean_.pop()) {
    if (states_[clean_.front()].place != Place::kClean) continue;
    drop(clean_.front());
    return true;
  }
  return false;
}

void Simulator::Run::drop(uint32_t record) {
  states_[record].place = Place::kAway;
  states_[record].left = true;
  held_ -= fixed_[record].held;
}

void Simulator::Run::hold(int64_t bytes) noexcept {
  held_ += bytes;
  result_.device_peak = std::max(result_.device_peak, Bytes(held_));
}

Simulator::Simulator(const Profile& profile, const Machine& machine, const Budgets& budgets, uint32_t device)
    : run_(std::make_unique<Run>(profile, machine, budgets, device)) {}
Simulator::~Simulator() = default;
Simulator::Simulator(Simulator&&) noexcept = default;

Simulated Simulator::run(std::span<const Action> actions) {
  return (*run_)(actions);
}

std::vector<Action> Simulator::became() const {
  return run_->became();
}

std::vector<uint32_t> Simulator::return_order() const {
  return run_->order();
}

}  // namespace ebbtide
