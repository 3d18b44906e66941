#include "tests/support/watchdog.h"

#include <gtest/gtest.h>

#include <chrono>
#include <future>

namespace ebbtide::test {
namespace {

TEST(WatchdogDeathTest, SaysWhereNothingHappens) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(
      {
        Watchdog watchdog{std::chrono::milliseconds(20)};
        watchdog.now("an unpack");
        std::promise<void>().get_future().wait();
      },
      "a deadlock.*last: an unpack");
}

}  // namespace
}  // namespace ebbtide::test
