#include <ebbtide/store/device_times.h>

#include <algorithm>

namespace ebbtide {
namespace {

/// In seconds since the first mark.
struct Interval {
  double begin = 0;
  double end = 0;
  std::optional<DeviceTimes::Redo> redo;
};

/// How much of the time before `at` the intervals cover. REQUIRES: they are sorted by their begin.
class Covered {
 public:
  explicit Covered(const std::vector<Interval>& intervals) : intervals_(intervals) {}
  /// REQUIRES: `at` never falls from call to call.
  double before(double at) {
    for (; next_ < intervals_.size() && intervals_[next_].begin < at; ++next_) {
      const Interval& interval = intervals_[next_];
      full_ += std::max(0.0, std::max(interval.end, until_) - std::max(interval.begin, until_));
      until_ = std::max(until_, interval.end);
    }
    return full_ - std::max(0.0, until_ - at);
  }

 private:
  const std::vector<Interval>& intervals_;
  size_t next_ = 0;
  double until_ = 0;
  double full_ = 0;
};

}  // namespace

EventPtr DeviceTimes::here(StreamId stream) noexcept {
  EventPtr event;
  if (stream == stream_) {
    // In a graph capture an event would become part of the graph.
    const Result<bool> capturing = device_->capturing(stream);
    if (capturing.ok() && !capturing.value())
      if (auto recorded = device_->record_timed(stream); recorded.ok()) event = std::move(recorded).value();
  }
  if (!event) spoil();
  return event;
}

void DeviceTimes::step(size_t step, EventPtr event) {
  const std::lock_guard lock(mutex_);
  if (event)
    marks_.steps.emplace_back(step, std::move(event));
  else
    marks_.gaps = true;
}

void DeviceTimes::waited(EventPtr begin, EventPtr end) {
  const std::lock_guard lock(mutex_);
  if (begin && end) marks_.away.push_back({std::move(begin), std::move(end), std::nullopt});
}

void DeviceTimes::redo_began(const Redo& redo, EventPtr event) {
  const std::lock_guard lock(mutex_);
  if (event) marks_.away.push_back({std::move(event), nullptr, redo});
}

void DeviceTimes::redo_ended(uint32_t record, EventPtr event) {
  const std::lock_guard lock(mutex_);
  const auto open = std::find_if(marks_.away.rbegin(), marks_.away.rend(), [&](const Away& away) {
    return away.redo && away.redo->record == record && !away.end;
  });
  if (open != marks_.away.rend()) open->end = std::move(event);
}

void DeviceTimes::ended(EventPtr event) {
  mark_steps(false);
  const std::lock_guard lock(mutex_);
  end_ = std::move(event);
}

void DeviceTimes::spoil() {
  mark_steps(false);
  const std::lock_guard lock(mutex_);
  spoilt_ = true;
}

DeviceTimes::Answer DeviceTimes::look() {
  EventPtr end;
  {
    const std::lock_guard lock(mutex_);
    if (spoilt_ || !end_ || marks_.steps.empty()) return {State::kNever, {}};
    end = end_;
  }
  const Result<bool> passed = device_->passed(end);
  if (passed.ok() && !passed.value()) return {};
  Marks marks;
  {
    const std::lock_guard lock(mutex_);
    if (!passed.ok() || std::exchange(spoilt_, true)) return {State::kNever, {}};
    marks = std::exchange(marks_, {});
  }
  Result<Known> known = measure(*device_, marks, end);
  if (!known.ok()) return {State::kNever, {}};
  return {State::kKnown, std::move(known).value()};
}

Result<DeviceTimes::Known> DeviceTimes::measure(Device& device, const Marks& marks, const EventPtr& end) {
  std::optional<Failure> failure;
  const auto since_first = [&](const EventPtr& event) {
    const Result<double> seconds = device.seconds_between(marks.steps.front().second, event);
    if (seconds.ok()) return seconds.value();
    failure = seconds.failure();
    return 0.0;
  };
  std::vector<Interval> intervals;
  for (const Away& away : marks.away)
    if (away.end) intervals.push_back({since_first(away.begin), since_first(away.end), away.redo});
  std::ranges::stable_sort(intervals, {}, &Interval::begin);

  Known known;
  known.all_steps = !marks.gaps;
  known.seconds = since_first(end);
  Covered covered(intervals);
  double latest = 0;  // a mark is never before the one before it, whatever a clock's steps are
  for (const auto& [step, event] : marks.steps) {
    latest = std::max(latest, since_first(event));
    known.steps.emplace_back(step, latest - covered.before(latest));
  }
  latest = std::max(latest, known.seconds);
  known.compute_s = latest - covered.before(latest);

  // What lies within a redo is another's.
  std::vector<double> own(intervals.size());
  std::vector<size_t> open;
  for (size_t i = 0; i < intervals.size(); ++i) {
    while (!open.empty() && intervals[open.back()].end <= intervals[i].begin) open.pop_back();
    own[i] = intervals[i].end - intervals[i].begin;
    if (!open.empty()) own[open.back()] -= own[i];
    open.push_back(i);
  }
  for (size_t i = 0; i < intervals.size(); ++i) {
    if (!intervals[i].redo) continue;
    known.redos.push_back(*intervals[i].redo);
    known.redos.back().seconds = std::max(0.0, own[i]);
  }
  if (failure) return *failure;
  return known;
}

}  // namespace ebbtide
