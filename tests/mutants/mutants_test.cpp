// Every wait, event record and hold of transfer/ and store/, left out one at a time, is missed: the race detector sees
// it in every seed in which it would have put anything in order.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "tests/mutants/programs.h"

namespace ebbtide::mutants {
namespace {

struct Mutant {
  const char* name;
  const char* file;
  const char* why;
  const char* program;
  const char* not_in_step;  // what is wrong with it; empty: nothing
};
const Mutant kMutants[] = {
#include "mutants.inc"
};
void PrintTo(const Mutant& mutant, std::ostream* out) {
  *out << mutant.name;
}

bool is_long() {
  return std::getenv("EBBTIDE_LONG") != nullptr;
}
/// Of each mutant, in which it was executed.
int seeds_wanted() {
  return is_long() ? 200 : 20;
}

Outcome run(const std::string& program, const std::string& left_out, uint64_t seed) {
  if (program == "link") return run_link(left_out, seed);
  return program.ends_with("lanes") ? run_lanes(program, left_out, seed) : run_store(program, left_out, seed);
}

class Whole : public testing::TestWithParam<const char*> {};

TEST_P(Whole, IsCleanInEverySeed) {
  for (uint64_t seed = 1; seed <= (is_long() ? 2000u : 200u) && !HasFailure(); ++seed) {
    const Outcome outcome = run(GetParam(), "", seed);
    EXPECT_THAT(outcome.caught, testing::IsEmpty()) << "seed " << seed;
    EXPECT_FALSE(outcome.executed) << "seed " << seed;
  }
}
INSTANTIATE_TEST_SUITE_P(Programs, Whole,
                         testing::Values("store", "cuda store", "host store", "lanes", "cuda lanes", "link"),
                         [](const auto& each) {
                           std::string name = each.param;
                           for (char& letter : name) letter = letter == ' ' ? '_' : letter;
                           return name;
                         });

class LeftOut : public testing::TestWithParam<Mutant> {};

TEST_P(LeftOut, IsCaughtInEverySeedThatExecutesIt) {
  const Mutant& mutant = GetParam();
  ASSERT_STREQ(mutant.not_in_step, "") << "bring tests/mutants/mutants.py up to date: name the text that is there now, "
                                          "or drop the mutant with the order that is gone";
  int executed = 0, caught = 0;
  std::string example;
  uint64_t seed = 0;
  while (executed < seeds_wanted() && seed < static_cast<uint64_t>(20 * seeds_wanted())) {
    const Outcome outcome = run(mutant.program, mutant.name, ++seed);
    if (!outcome.executed) continue;
    ++executed;
    if (outcome.caught.empty()) {
      ADD_FAILURE() << "not caught in seed " << seed;
      if (executed - caught > 3) break;
      continue;
    }
    ++caught;
    example = *outcome.caught.begin();
  }
  EXPECT_GE(executed, seeds_wanted()) << "of " << seed << " seeds";
  std::printf("%-24s executed %3d caught %3d of %3d seeds by %-10s %s\n", mutant.name, executed, caught,
              static_cast<int>(seed), mutant.program, example.c_str());
}
INSTANTIATE_TEST_SUITE_P(Each, LeftOut, testing::ValuesIn(kMutants), [](const auto& each) {
  std::string name = each.param.name;
  for (char& letter : name) letter = std::isalnum(static_cast<unsigned char>(letter)) ? letter : '_';
  return name;
});

}  // namespace
}  // namespace ebbtide::mutants
