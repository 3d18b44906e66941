// Whatever autograd does, the store changes no bit of it and no error, and nothing of it is left.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <cstdlib>
#include <optional>
#include <regex>
#include <string>
#include <vector>

#include "tests/hooks/random_graph.h"
#include "tests/hooks/support.h"
#include "tests/support/sweep.h"

namespace ebbtide::test {
namespace {

/// Of a tensor that was written to, torch says what it finds in the tensor itself, which it keeps alive: which node made
/// it, or that it is one of several views of what was written to. A store does not keep it, and may know less.
std::vector<std::string> comparable(std::vector<std::string> errors) {
  static const std::regex several("Output [0-9]+ of .* is a view and its base or another view of its base has been .*");
  static const std::regex written("one of the variables needed for gradient computation has been modified by an .*");
  for (std::string& error : errors)
    error = std::regex_replace(std::regex_replace(error, several, "written to"), written, "written to");
  return errors;
}

TEST(RandomGraphSweep, SameBitsAndSameErrors) {
  const Folder folder;
  // To open a store on this machine's own topology takes longer than a graph.
  ASSERT_EQ(::setenv("HWLOC_SYNTHETIC", "numa:1 pu:2", 1), 0);
  int64_t gradients = 0;
  sweep("random autograd graphs", 10'000, [&](uint64_t seed) {
    const GraphOutcome plain = run_random_graph(seed, nullptr);
    std::vector<Options> machines;
    if (seed % 3 != 0) machines.push_back(spilling(folder));                                             // all leaves
    if (seed % 3 != 1) machines.push_back(spilling(folder, KiB(static_cast<int64_t>(seed * 7 % 256))));  // some
    if (seed % 3 == 1) machines.push_back(keeping());                                                    // none
    for (const Options& options : machines) {
      std::optional<Store> store(std::in_place, options);
      const GraphOutcome outcome = run_random_graph(seed, &*store);
      ASSERT_EQ(comparable(outcome.errors), comparable(plain.errors));
      ASSERT_TRUE(same_bits(outcome.gradients, plain.gradients));
      if (plain.left == 0) expect_all_is_over(*store);
      gradients += static_cast<int64_t>(outcome.gradients.size());
    }
  });
  EXPECT_GT(gradients, 0);
}

}  // namespace
}  // namespace ebbtide::test
