// A device's events on the host's clock.
#include <ebbtide/transfer/device_clock.h>

#include <gtest/gtest.h>

#include <chrono>
#include <memory>

#include "tests/support/clocked_device.h"
#include "tests/support/fake_clock.h"

namespace ebbtide::test {
namespace {

/// The device was started a while before the host's clock was, and both go as time goes.
class DeviceClockTest : public testing::Test {
 protected:
  static constexpr double kDeviceIsAhead = 0.25;

  DeviceClockTest() { device_->host_spends(kDeviceIsAhead); }
  void time_passes(double seconds) {
    host_.advance(std::chrono::nanoseconds(static_cast<int64_t>(seconds * 1e9)));
    device_->host_spends(seconds);
  }
  /// Its stream for copies in gets this much further.
  void busy(double seconds) { device_->occupy(device_->copy_stream(Direction::kIn), seconds); }
  /// Of the reading's event, as the device has it.
  double device_time(const DeviceClock::Reading& reading) {
    return device_->seconds_between(start_, reading.event).value();
  }

  FakeClock host_;
  std::shared_ptr<ClockedDevice> device_ = std::make_shared<ClockedDevice>(ClockedDevice::Speeds{});
  EventPtr start_ = device_->record_timed(device_->copy_stream(Direction::kIn)).value();
  DeviceClock clock_{device_, host_};
};

TEST_F(DeviceClockTest, NothingIsReadBeforeItIsWanted) {
  clock_.pump();
  EXPECT_FALSE(clock_.reading());
}

TEST_F(DeviceClockTest, AReadingIsTrueToWhatItSays) {
  clock_.want();
  busy(0.001);  // a copy is under way for so long
  clock_.pump();
  EXPECT_FALSE(clock_.reading());
  time_passes(0.003);
  clock_.pump();
  const auto reading = clock_.reading();
  ASSERT_TRUE(reading);
  EXPECT_NEAR(reading->within_s, 0.0015, 1e-9);
  EXPECT_NEAR(reading->host_s, device_time(*reading) - kDeviceIsAhead, reading->within_s);
}

TEST_F(DeviceClockTest, TheNarrowestCounts) {
  clock_.want();
  busy(0.001);
  clock_.pump();
  time_passes(0.003);
  clock_.pump();
  time_passes(1);
  clock_.pump();  // an idle stream: passed at once
  const auto narrow = clock_.reading();
  ASSERT_TRUE(narrow);
  EXPECT_EQ(narrow->within_s, 0);
  time_passes(1);
  busy(0.1);
  clock_.pump();
  time_passes(0.2);
  clock_.pump();
  EXPECT_EQ(clock_.reading()->event, narrow->event);
}

TEST_F(DeviceClockTest, AnOldReadingCountsNoLonger) {
  clock_.want();
  time_passes(0.01);
  clock_.pump();
  const auto old = clock_.reading();
  ASSERT_TRUE(old);
  time_passes(60);
  busy(0.01);
  clock_.pump();
  time_passes(0.02);
  clock_.pump();
  EXPECT_NE(clock_.reading()->event, old->event);
}

}  // namespace
}  // namespace ebbtide::test
