#include <ebbtide/transfer/measure_link.h>

#include <algorithm>
#include <array>
#include <string>
#include <utility>

namespace ebbtide {
namespace {

constexpr size_t kSizes[] = {size_t{64} << 10, size_t{1} << 20, size_t{16} << 20};

class Measurement {
 public:
  Measurement(Device& device, const Clock& clock, const LinkScratch& scratch, std::chrono::nanoseconds at_most)
      : device_(device), clock_(clock), scratch_(scratch), at_most_(at_most) {}

  Result<LinkBandwidth> run() {
    // The first copies of a process pay for what the driver sets up then.
    if (Result<Seconds> warm = copy(kBoth, std::min(scratch_.bytes, kSizes[0]), 1); !warm.ok()) return warm.failure();
    double shortest = 0;  // of one transfer of this size, as far as known
    for (const size_t bytes : kSizes) {
      if (bytes > scratch_.bytes || shortest > part()) break;
      for (const Ways& ways : {kOut, kIn, kBoth}) {
        Result<Seconds> once = copy(ways, bytes, 1);
        if (!once.ok()) return once.failure();
        const double longest = std::max(once.value()[0], once.value()[1]);
        const int times = static_cast<int>(std::clamp(part() / std::max(longest, 1e-9), 1.0, kMostTimes));
        Result<Seconds> took = copy(ways, bytes, times);
        if (!took.ok()) return took.failure();
        note(ways, bytes, times, took.value());
        shortest = std::max(took.value()[0], took.value()[1]) / times * kNextSize;
      }
    }
    return bandwidth_;
  }

 private:
  using Ways = std::array<bool, 2>;  // by Direction
  using Seconds = std::array<double, 2>;
  static constexpr Ways kOut{true, false}, kIn{false, true}, kBoth{true, true};
  static constexpr double kMostTimes = 64;
  static constexpr double kNextSize = 16;

  /// Of the time for one of the nine measurements.
  double part() const { return std::chrono::duration<double>(at_most_).count() / 9; }

  void note(const Ways& ways, size_t bytes, int times, const Seconds& took) {
    const Bytes one(static_cast<int64_t>(bytes));
    for (const Direction direction : {Direction::kOut, Direction::kIn}) {
      Bandwidth& bandwidth = direction == Direction::kOut ? bandwidth_.out : bandwidth_.in;
      if (!ways[index(direction)]) continue;
      if (ways != kBoth) {
        bandwidth.add(one, one * times, took[index(direction)], LinkUse::kAlone);
        continue;
      }
      // The slower way ends alone, at the speed just measured for that.
      const double both = std::min(took[0], took[1]);
      const double alone = *bandwidth.bytes_per_second(one, LinkUse::kAlone) * (took[index(direction)] - both);
      bandwidth.add(one, one * times - Bytes(static_cast<int64_t>(alone)), both, LinkUse::kDuplex);
    }
  }

  /// Seconds each way for `times` transfers; both ways begin together.
  Result<Seconds> copy(const Ways& ways, size_t bytes, int times) {
    std::array<EventPtr, 2> begin, end;
    const auto start = clock_.now();
    for (const Direction direction : {Direction::kOut, Direction::kIn}) {
      if (!ways[index(direction)] || !times_) continue;
      Result<EventPtr> event = device_.record_timed(device_.copy_stream(direction));
      if (event.ok())
        begin[index(direction)] = std::move(event).value();
      else if (event.failure().code == FailureCode::kUnsupported)
        times_ = false;
      else
        return event.failure();
    }
    for (int i = 0; i < times; ++i) {
      for (const Direction direction : {Direction::kOut, Direction::kIn}) {
        if (!ways[index(direction)]) continue;
        const bool out = direction == Direction::kOut;
        std::byte* const to = out ? scratch_.host_out : scratch_.device_in;
        const std::byte* const from = out ? scratch_.device_out : scratch_.host_in;
        if (Status copied = device_.copy(to, from, bytes, direction, device_.copy_stream(direction)); !copied.ok())
          return copied.failure();
      }
    }
    for (const Direction direction : {Direction::kOut, Direction::kIn}) {
      if (!ways[index(direction)]) continue;
      const StreamId stream = device_.copy_stream(direction);
      Result<EventPtr> event = times_ ? device_.record_timed(stream) : device_.record(stream);
      if (!event.ok()) return event.failure();
      end[index(direction)] = std::move(event).value();
    }
    return seconds(begin, end, start);
  }

  Result<Seconds> seconds(const std::array<EventPtr, 2>& begin, const std::array<EventPtr, 2>& end,
                          std::chrono::nanoseconds start) {
    Seconds took{};
    std::array<bool, 2> pending{end[0] != nullptr, end[1] != nullptr};
    while (pending[0] || pending[1]) {
      for (size_t way = 0; way < 2; ++way) {
        if (!pending[way]) continue;
        const Result<bool> passed = device_.passed(end[way]);
        if (!passed.ok()) return passed.failure();
        const auto now = clock_.now();
        if (!passed.value()) {
          if (now - start > at_most_ * 10)
            return Failure{FailureCode::kUnsupported, 0, "The link of " + device_.name() + " is too slow to measure."};
          continue;
        }
        pending[way] = false;
        took[way] = std::chrono::duration<double>(now - start).count();
        if (!times_) continue;
        const Result<double> timed = device_.seconds_between(begin[way], end[way]);
        if (!timed.ok()) return timed.failure();
        took[way] = timed.value();
      }
    }
    return took;
  }

  static constexpr size_t index(Direction direction) { return static_cast<size_t>(direction); }

  Device& device_;
  const Clock& clock_;
  const LinkScratch scratch_;
  const std::chrono::nanoseconds at_most_;
  LinkBandwidth bandwidth_;
  bool times_ = true;
};

}  // namespace

Result<LinkBandwidth> measure_link(Device& device, const Clock& clock, const LinkScratch& scratch,
                                   std::chrono::nanoseconds at_most) {
  return Measurement(device, clock, scratch, at_most).run();
}

}  // namespace ebbtide
