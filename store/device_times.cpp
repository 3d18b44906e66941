#include <ebbtide/store/device_times.h>

#include <algorithm>
#include <exception>
#include <limits>
#include <map>

namespace ebbtide {
namespace {

/// In seconds since the first mark.
struct Interval {
  DeviceTimes::Point where;
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

/// Of each its own time: what lies within a redo is another's. REQUIRES: they are sorted by their begin.
std::vector<DeviceTimes::Redo> redos_of(const std::vector<Interval>& intervals) {
  std::vector<double> own(intervals.size());
  std::map<const Device*, std::vector<size_t>> open_on;
  for (size_t i = 0; i < intervals.size(); ++i) {
    std::vector<size_t>& open = open_on[intervals[i].where.device];
    while (!open.empty() && intervals[open.back()].end <= intervals[i].begin) open.pop_back();
    own[i] = intervals[i].end - intervals[i].begin;
    if (!open.empty()) own[open.back()] -= own[i];
    open.push_back(i);
  }
  std::vector<DeviceTimes::Redo> redos;
  for (size_t i = 0; i < intervals.size(); ++i) {
    if (!intervals[i].redo) continue;
    redos.push_back(*intervals[i].redo);
    redos.back().seconds = std::max(0.0, own[i]);
  }
  return redos;
}

}  // namespace

/// Where events of several devices lie on one line, in seconds since any time.
class DeviceTimes::TimeLine {
 public:
  TimeLine(const std::vector<Place>& places, const std::vector<Step>& steps) {
    for (const auto& [number, first] : steps) {
      if (known(*first.device) != nullptr) continue;
      const auto place = std::ranges::find_if(places, [&](const Place& at) { return at.device.get() == first.device; });
      origins_.push_back({place->device, place->clock, first.event, 0});
    }
    if (origins_.size() < 2) return;
    for (Origin& origin : origins_) {
      const auto reading = origin.clock->reading();
      const auto since = reading ? between(*origin.device, reading->event, origin.event) : std::nullopt;
      if (!since) {
        failed_ = true;
        return;
      }
      origin.at = reading->host_s + *since;
      within_s_ = std::max(within_s_, reading->within_s);
    }
  }

  double at(const Device& device, const EventPtr& event) {
    const Origin* origin = known(device);
    const auto since = origin != nullptr ? between(*origin->device, origin->event, event) : std::nullopt;
    if (!since) failed_ = true;
    return since ? origin->at + *since : 0;
  }
  double at(const Point& point) { return at(*point.device, point.event); }
  /// Whether some time was not to be had.
  bool failed() const noexcept { return failed_; }
  /// What lies between events of two devices is true to twice so many seconds.
  double within_s() const noexcept { return within_s_; }

 private:
  struct Origin {
    std::shared_ptr<Device> device;
    std::shared_ptr<DeviceClock> clock;
    EventPtr event;
    double at = 0;
  };
  const Origin* known(const Device& device) const noexcept {
    const auto found = std::ranges::find_if(origins_, [&](const Origin& at) { return at.device.get() == &device; });
    return found != origins_.end() ? &*found : nullptr;
  }
  static std::optional<double> between(Device& device, const EventPtr& from, const EventPtr& to) {
    const Result<double> seconds = device.seconds_between(from, to);
    return seconds.ok() ? std::optional(seconds.value()) : std::nullopt;
  }

  std::vector<Origin> origins_;
  double within_s_ = 0;
  bool failed_ = false;
};

void DeviceTimes::add(Place place) {
  const std::lock_guard lock(mutex_);
  for (const Place& known : places_)
    if (known.device == place.device && known.stream == place.stream) return;
  places_.push_back(std::move(place));
  if (std::ranges::all_of(places_, [&](const Place& known) { return known.device == places_[0].device; })) return;
  for (const Place& known : places_) known.clock->want();
}

bool DeviceTimes::of(const Device& device, StreamId stream) const {
  const std::lock_guard lock(mutex_);
  return std::ranges::any_of(
      places_, [&](const Place& known) { return known.device.get() == &device && known.stream == stream; });
}

std::vector<DeviceTimes::Place> DeviceTimes::places() const {
  const std::lock_guard lock(mutex_);
  return places_;
}

DeviceTimes::Point DeviceTimes::here(const Device& device, StreamId stream) noexcept {
  Point point{&device, stream, nullptr};
  std::shared_ptr<Device> on;
  {
    const std::lock_guard lock(mutex_);
    for (const Place& place : places_)
      if (place.device.get() == &device && place.stream == stream) on = place.device;
  }
  if (!on) return point;
  // In a graph capture an event would become part of the graph.
  const Result<bool> capturing = on->capturing(stream);
  if (capturing.ok() && !capturing.value())
    if (auto recorded = on->record_timed(stream); recorded.ok()) point.event = std::move(recorded).value();
  if (!point.event) spoil();
  return point;
}

void DeviceTimes::step(size_t step, Point at) {
  const std::lock_guard lock(mutex_);
  if (at.event)
    marks_.steps.push_back({step, std::move(at)});
  else
    marks_.gaps = true;
}

void DeviceTimes::waited(Point begin, const Point& end) {
  const std::lock_guard lock(mutex_);
  if (begin.event && end.event) marks_.away.push_back({std::move(begin), end.event, std::nullopt});
}

void DeviceTimes::redo_began(const Redo& redo, Point at) {
  const std::lock_guard lock(mutex_);
  if (at.event) marks_.away.push_back({std::move(at), nullptr, redo});
}

void DeviceTimes::redo_ended(uint32_t record, const Point& at) {
  const std::lock_guard lock(mutex_);
  const auto open = std::find_if(marks_.away.rbegin(), marks_.away.rend(), [&](const Away& away) {
    return away.redo && away.redo->record == record && !away.end;
  });
  if (open != marks_.away.rend()) open->end = at.event;
}

void DeviceTimes::ended() noexcept {
  mark_steps(false);
  try {
    std::vector<Point> ends;
    for (const Place& place : places()) ends.push_back(here(*place.device, place.stream));
    const std::lock_guard lock(mutex_);
    marks_.ends = std::move(ends);
  } catch (const std::exception&) {
    spoil();  // no memory to learn with
  }
}

void DeviceTimes::spoil() {
  mark_steps(false);
  const std::lock_guard lock(mutex_);
  spoilt_ = true;
}

DeviceTimes::Answer DeviceTimes::look() {
  std::vector<Point> ends;
  {
    const std::lock_guard lock(mutex_);
    if (!spoilt_ && measured_) return {};
    if (spoilt_ || marks_.ends.empty() || marks_.steps.empty()) return {State::kNever, {}};
    ends = marks_.ends;
  }
  const std::vector<Place> all = places();
  for (const Point& end : ends) {
    const auto place = std::ranges::find_if(all, [&](const Place& at) { return at.device.get() == end.device; });
    const Result<bool> passed = place->device->passed(end.event);
    if (passed.ok() && !passed.value()) return {};
    if (!passed.ok()) spoil();
  }
  Marks marks;
  {
    const std::lock_guard lock(mutex_);
    if (spoilt_) return {State::kNever, {}};
    if (std::exchange(measured_, true)) return {};
    marks = std::exchange(marks_, {});
  }
  std::optional<Known> known = measure(marks);
  if (!known) return {State::kNever, {}};
  return {State::kKnown, std::move(*known)};
}

/// None where a device does not say, or where what it is on the others' clocks is too vague.
std::optional<DeviceTimes::Known> DeviceTimes::measure(const Marks& marks) const {
  constexpr double kVague = 0.02;  // of what one device alone has spent on the pass, by its own clock
  TimeLine line(places(), marks.steps);
  struct Spent {
    double begin = 0;
    double latest = 0;
  };
  std::map<const Device*, Spent> spent;
  struct Timed {
    size_t number = 0;
    const Point* where = nullptr;
    double at = 0;
  };
  std::vector<Timed> steps;
  for (const Step& step : marks.steps) {
    const double at = line.at(step.at);
    double& latest = spent.emplace(step.at.device, Spent{at, at}).first->second.latest;
    latest = std::max(latest, at);  // a mark is never before the one before it, whatever a clock's steps are
    steps.push_back({step.number, &step.at, latest});
  }
  for (const Point& point : marks.ends) {
    double& latest = spent[point.device].latest;
    latest = std::max(latest, line.at(point));
  }
  std::ranges::stable_sort(steps, {}, &Timed::at);
  const double begin = steps.front().at;
  double end = begin, longest = 0;
  for (const auto& [device, of_device] : spent) {
    end = std::max(end, of_device.latest);
    longest = std::max(longest, of_device.latest - of_device.begin);
  }
  std::vector<Interval> intervals;
  for (const Away& away : marks.away) {
    if (!away.end) continue;
    const double from = line.at(away.begin);
    const auto next = std::ranges::upper_bound(steps, from, {}, &Timed::at);
    if (!away.redo && next != steps.end() && !next->where->same_stream(away.begin)) continue;  // others go on
    intervals.push_back({away.begin, from - begin, line.at(*away.begin.device, away.end) - begin, away.redo});
  }
  if (line.failed() || 2 * line.within_s() > kVague * longest) return std::nullopt;
  std::ranges::stable_sort(intervals, {}, &Interval::begin);

  Known known;
  known.all_steps = !marks.gaps;
  known.seconds = end - begin;
  Covered covered(intervals);
  for (const Timed& step : steps)
    known.steps.emplace_back(step.number, step.at - begin - covered.before(step.at - begin));
  known.compute_s = known.seconds - covered.before(known.seconds);
  known.redos = redos_of(intervals);
  return known;
}

}  // namespace ebbtide
