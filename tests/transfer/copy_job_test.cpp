#include <ebbtide/transfer/copy_job.h>

#include <gtest/gtest.h>

#include <set>
#include <utility>

namespace ebbtide {
namespace {

TEST(CopyState, EveryPairOfStates) {
  using enum CopyState;
  const std::set<std::pair<CopyState, CopyState>> allowed = {
      {kQueued, kStopping}, {kQueued, kEnqueued},    {kQueued, kFailed},   {kQueued, kCancelled},
      {kStopping, kFailed}, {kStopping, kCancelled}, {kEnqueued, kPassed}, {kEnqueued, kFailed},
  };
  for (int from = 0; from < kCopyStates; ++from) {
    for (int to = 0; to < kCopyStates; ++to) {
      const std::pair transition(static_cast<CopyState>(from), static_cast<CopyState>(to));
      EXPECT_EQ(may_become(transition.first, transition.second), allowed.contains(transition)) << from << " -> " << to;
    }
  }
}

}  // namespace
}  // namespace ebbtide
