#include <ebbtide/store/record_state.h>

#include <gtest/gtest.h>

#include <set>
#include <string>
#include <utility>

namespace ebbtide {
namespace {

constexpr RecordState kAll[] = {RecordState::kResident, RecordState::kLeaving,   RecordState::kClean,
                                RecordState::kLower,    RecordState::kReturning, RecordState::kRedone,
                                RecordState::kLost,     RecordState::kDead};

bool has_resident_memory(RecordState state) {
  return state == RecordState::kResident || state == RecordState::kLeaving || state == RecordState::kClean;
}
bool has_lower_copy(RecordState state) {
  return state == RecordState::kClean || state == RecordState::kLower || state == RecordState::kReturning;
}

TEST(RecordState, EveryPairIsAsTheRulesSay) {
  using enum RecordState;
  const std::set<std::pair<RecordState, RecordState>> allowed = {
      {kResident, kLeaving}, {kLeaving, kResident}, {kLeaving, kClean},   {kClean, kResident}, {kClean, kLower},
      {kLower, kReturning},  {kReturning, kClean},  {kReturning, kLower}, {kReturning, kLost}, {kResident, kDead},
      {kLeaving, kDead},     {kClean, kDead},       {kLower, kDead},      {kReturning, kDead}, {kLost, kDead},
      {kResident, kRedone},  {kRedone, kResident},  {kRedone, kDead}};
  for (RecordState from : kAll)
    for (RecordState to : kAll)
      EXPECT_EQ(may_become(from, to), allowed.contains({from, to})) << to_string(from) << " -> " << to_string(to);
}

TEST(RecordState, NoMoveLosesTheLastCopy) {
  for (RecordState from : kAll)
    for (RecordState to : kAll) {
      if (!may_become(from, to) || to == RecordState::kDead || to == RecordState::kLost) continue;
      if (to == RecordState::kRedone) {  // a recipe stands for the copy, and nothing else may go that way
        EXPECT_EQ(from, RecordState::kResident);
        continue;
      }
      EXPECT_TRUE(has_resident_memory(to) || has_lower_copy(to)) << to_string(to);
      // What is in neither afterwards must have been in neither before, and what drops the one must have had the other.
      if (has_resident_memory(from) && !has_resident_memory(to)) {
        EXPECT_TRUE(has_lower_copy(from)) << to_string(from) << " -> " << to_string(to);
      }
    }
}

TEST(RecordState, HasAName) {
  std::set<std::string> names;
  for (RecordState state : kAll) names.emplace(to_string(state));
  EXPECT_EQ(names.size(), kRecordStates);
}

}  // namespace
}  // namespace ebbtide
