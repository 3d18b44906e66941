#include <ebbtide/nvme/write_allowance.h>
#include <gtest/gtest.h>

#include <deque>
#include <random>
#include <utility>

namespace ebbtide::nvme {
namespace {

using Clock = WriteAllowance::Clock;
using std::chrono::hours;
using std::chrono::minutes;

TEST(WriteAllowance, IsADaysAndComesBack) {
  const Clock::time_point begin;
  WriteAllowance allowance(100, begin);
  EXPECT_TRUE(allowance.take(60, begin));
  EXPECT_FALSE(allowance.take(41, begin + hours(1)));
  EXPECT_TRUE(allowance.take(40, begin + hours(2)));
  EXPECT_FALSE(allowance.take(1, begin + hours(23)));
  EXPECT_TRUE(allowance.take(60, begin + hours(25)));
  EXPECT_EQ(allowance.taken(), 100u);
  EXPECT_TRUE(allowance.take(100, begin + hours(1000)));
}

TEST(WriteAllowance, WithoutALimitOnlyCounts) {
  const Clock::time_point begin;
  WriteAllowance allowance(std::nullopt, begin);
  EXPECT_TRUE(allowance.take(uint64_t{1} << 62, begin));
  EXPECT_EQ(allowance.taken(), uint64_t{1} << 62);
}

TEST(WriteAllowance, WhatIsGivenBackCountsNoMoreInItsHour) {
  const Clock::time_point begin;
  WriteAllowance allowance(100, begin);
  EXPECT_TRUE(allowance.take(60, begin));
  EXPECT_TRUE(allowance.take(40, begin + hours(1)));
  EXPECT_FALSE(allowance.take(1, begin + hours(1)));
  allowance.give_back(50, begin, begin + hours(2));
  EXPECT_EQ(allowance.taken(), 50u);
  EXPECT_TRUE(allowance.take(50, begin + hours(2)));
  EXPECT_FALSE(allowance.take(11, begin + hours(25))) << "of the first hour 10 were left";
  EXPECT_TRUE(allowance.take(10, begin + hours(25)));
  allowance.give_back(10, begin, begin + hours(25));  // long forgotten
  EXPECT_EQ(allowance.taken(), 100u);
  EXPECT_TRUE(allowance.take(100, begin + hours(1000)));
  allowance.give_back(40, begin + hours(2), begin + hours(1000));
  EXPECT_EQ(allowance.taken(), 100u);
}

/// Beside a list of all that was taken: never more than the limit within 24 hours, and what is refused would have been
/// too much for 25. Some of it is given back, however late.
TEST(WriteAllowance, HoldsInAnyDay) {
  std::mt19937_64 random(1);
  Clock::time_point now;
  WriteAllowance allowance(1000, now);
  std::deque<std::pair<Clock::time_point, uint64_t>> taken;
  const auto since = [&](Clock::time_point when) {
    uint64_t bytes = 0;
    for (const auto& [at, count] : taken) bytes += at > when ? count : 0;
    return bytes;
  };
  for (int step = 0; step < 20'000; ++step) {
    now += minutes(random() % (random() % 100 == 0 ? 3000 : 40));
    if (!taken.empty() && random() % 4 == 0) {
      auto& [when, count] = taken[random() % taken.size()];
      const uint64_t back = random() % (count + 1);
      allowance.give_back(back, when, now);
      count -= back;
    }
    const uint64_t bytes = random() % 100;
    if (allowance.take(bytes, now)) {
      taken.emplace_back(now, bytes);
      ASSERT_LE(since(now - hours(24)), 1000u);
    } else {
      ASSERT_GT(since(now - hours(25)) + bytes, 1000u);
    }
    while (!taken.empty() && taken.front().first < now - hours(26)) taken.pop_front();
  }
}

}  // namespace
}  // namespace ebbtide::nvme
