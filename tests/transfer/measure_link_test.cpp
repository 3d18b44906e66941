#include <ebbtide/transfer/measure_link.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <deque>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tests/support/chaos_device.h"
#include "tests/support/device_rig.h"
#include "tests/support/fake_clock.h"

namespace ebbtide {
namespace {

using namespace std::chrono_literals;
using test::FakeClock;

constexpr double kLatency = 8e-6;          // a copy
constexpr double kAlone[] = {12e9, 10e9};  // bytes a second, by Direction
constexpr double kBoth[] = {7e9, 6e9};
constexpr double kStep = 1e-6;

/// A link that does nothing but take its time, of which a microsecond goes by at each look at an event.
class PacedLink final : public Device {
 public:
  PacedLink(FakeClock& clock, bool times, double slower) : clock_(clock), times_(times), slower_(slower) {}

  bool is_host() const noexcept override { return false; }
  std::string name() const override { return "paced"; }
  std::string pci_address() const override { return {}; }
  Result<DeviceMemory> memory() override { return DeviceMemory{GiB(1), GiB(1)}; }
  StreamId copy_stream(Direction direction) noexcept override { return StreamId{static_cast<uint64_t>(direction)}; }
  Result<bool> capturing(StreamId) override { return false; }
  Result<EventPtr> record(StreamId stream) override {
    auto event = std::make_shared<Point>();
    queues_[static_cast<size_t>(stream)].push_back({0, event});
    return EventPtr(event);
  }
  Status wait(StreamId, const EventPtr&) override { return success(); }
  Result<bool> passed(const EventPtr& event) override {
    step();
    return static_cast<const Point&>(*event).passed;
  }
  Status copy(void*, const void*, size_t bytes, Direction direction, StreamId) override {
    queues_[static_cast<size_t>(direction)].push_back(
        {static_cast<double>(bytes) + kLatency * rate(direction == Direction::kOut ? 0 : 1), nullptr});
    ++copies_;
    return success();
  }
  Status copy_rows(void*, const void*, const CopyRows&, Direction, StreamId) override {
    return Failure{FailureCode::kUnsupported, 0, "not paced"};
  }
  Status synchronize(const EventPtr&) override { return success(); }
  Result<EventPtr> record_timed(StreamId stream) override {
    return times_ ? record(stream) : Device::record_timed(stream);
  }
  Result<double> seconds_between(const EventPtr& begin, const EventPtr& end) override {
    if (!times_) return Device::seconds_between(begin, end);
    return static_cast<const Point&>(*end).time - static_cast<const Point&>(*begin).time;
  }
  Status register_host(void*, size_t) override { return success(); }
  void unregister_host(void*, size_t) noexcept override {}

  int copies() const { return copies_; }

 private:
  struct Point final : Event {
    bool passed = false;
    double time = 0;
  };
  struct Item {
    double left;  // bytes, its latency among them
    std::shared_ptr<Point> event;
  };

  double rate(size_t way) const { return (queues_[1 - way].empty() ? kAlone : kBoth)[way] / slower_; }
  void step() {
    const std::array<double, 2> rates{rate(0), rate(1)};
    for (size_t way = 0; way < 2; ++way) {
      double left = kStep;
      auto& queue = queues_[way];
      while (!queue.empty()) {
        const double needs = queue.front().left / rates[way];
        if (needs > left) {
          queue.front().left -= left * rates[way];
          break;
        }
        left -= needs;
        if (queue.front().event) {
          queue.front().event->passed = true;
          queue.front().event->time = now_ + kStep - left;
        }
        queue.pop_front();
      }
    }
    now_ += kStep;
    clock_.advance(1us);
  }

  FakeClock& clock_;
  const bool times_;
  const double slower_;
  double now_ = 0;
  std::array<std::deque<Item>, 2> queues_;
  int copies_ = 0;
};

LinkScratch scratch(size_t bytes) {
  static std::byte nothing[4];
  return {nothing, nothing + 1, nothing + 2, nothing + 3, bytes};
}

void expect_near(std::optional<double> got, double wanted) {
  ASSERT_TRUE(got);
  EXPECT_NEAR(*got / wanted, 1, 0.05);
}

class MeasureLink : public testing::TestWithParam<bool> {};  // whether the device times events

TEST_P(MeasureLink, FindsTheSpeedOfEachSizeEachWayAloneAndBoth) {
  FakeClock clock;
  PacedLink link(clock, GetParam(), 1);
  const auto measured = measure_link(link, clock, scratch(size_t{32} << 20));
  ASSERT_TRUE(measured);
  const Bandwidth& out = measured.value().out;
  const Bandwidth& in = measured.value().in;
  for (const Bytes size : {KiB(64), MiB(1), MiB(16)}) {
    SCOPED_TRACE(to_string(size));
    const auto of = [&](double rate) { return 1 / (kLatency / static_cast<double>(size.count()) + 1 / rate); };
    expect_near(out.bytes_per_second(size, LinkUse::kAlone), of(kAlone[0]));
    expect_near(in.bytes_per_second(size, LinkUse::kAlone), of(kAlone[1]));
    expect_near(in.bytes_per_second(size, LinkUse::kDuplex), of(kBoth[1]));
  }
  EXPECT_LT(clock.now(), 60ms);
  EXPECT_GT(clock.now(), 10ms);
}

TEST_P(MeasureLink, LeavesOutWhatTakesTooLong) {
  FakeClock clock;
  PacedLink link(clock, GetParam(), 100);
  const auto measured = measure_link(link, clock, scratch(size_t{32} << 20));
  ASSERT_TRUE(measured);
  EXPECT_LT(clock.now(), 60ms);
  EXPECT_TRUE(measured.value().out.bytes_per_second(KiB(64), LinkUse::kAlone));
}

TEST_P(MeasureLink, GivesUpOnALinkThatStandsStill) {
  FakeClock clock;
  PacedLink link(clock, GetParam(), 1e9);
  const auto measured = measure_link(link, clock, scratch(size_t{32} << 20), 3ms);
  ASSERT_FALSE(measured);
  EXPECT_EQ(measured.failure().code, FailureCode::kUnsupported);
  EXPECT_LT(clock.now(), 31ms);
}

TEST_P(MeasureLink, MeasuresNoMoreThanTheScratchHolds) {
  FakeClock clock;
  PacedLink link(clock, GetParam(), 1);
  const auto measured = measure_link(link, clock, scratch(size_t{64} << 10));
  ASSERT_TRUE(measured);
  expect_near(measured.value().out.bytes_per_second(MiB(16), LinkUse::kAlone),
              *measured.value().out.bytes_per_second(KiB(64), LinkUse::kAlone));
}

INSTANTIATE_TEST_SUITE_P(TimesEvents, MeasureLink, testing::Bool());

/// On every device, so that nothing it copies is out of place; how long it takes there is nothing.
template <class Rig>
void measure_on(Rig& rig) {
  constexpr size_t kBytes = size_t{1} << 20;
  const StreamId out = rig.device().copy_stream(Direction::kOut), in = rig.device().copy_stream(Direction::kIn);
  const auto host_out = rig.host(kBytes), host_in = rig.host(kBytes);
  const auto device_out = rig.allocate(kBytes, out), device_in = rig.allocate(kBytes, in);
  const SteadyClock clock;
  const auto measured =
      measure_link(rig.device(), clock, {host_out.get(), host_in.get(), device_out.get(), device_in.get(), kBytes});
  ASSERT_TRUE(measured) << measured.failure().message;
  EXPECT_GT(*measured.value().out.bytes_per_second(MiB(1), LinkUse::kAlone), 0);
  EXPECT_GT(*measured.value().in.bytes_per_second(KiB(64), LinkUse::kDuplex), 0);
  rig.finish();
}

TEST(MeasureLinkOn, AnAcceleratorWithoutTimedEvents) {
  test::ChaosRig rig;
  measure_on(rig);
  rig.expect_clean();
}

TEST(MeasureLinkOn, Cuda) {
  test::FakeCudaRig rig;
  measure_on(rig);
  rig.expect_clean();
  EXPECT_GT(rig.api().calls("event_elapsed_time"), 0);
}

TEST(MeasureLinkOn, ADeviceThatIsLostSaysSo) {
  test::FakeCudaRig rig;
  rig.api().lose(CudaResult::kIllegalAddress);
  const SteadyClock clock;
  const auto measured = measure_link(rig.device(), clock, scratch(size_t{1} << 20));
  ASSERT_FALSE(measured);
  EXPECT_EQ(measured.failure().code, FailureCode::kDeviceLost);
}

}  // namespace
}  // namespace ebbtide
