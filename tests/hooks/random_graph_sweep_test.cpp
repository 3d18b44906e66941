// Whatever autograd does, the store changes no bit of it and no error, and nothing of it is left.
#include <ebbtide/store/store_core.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <cstdlib>
#include <memory>
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

/// What becomes of tensors that are over the budget; the first of these that is possible.
struct Machine {
  const char* name;
  Bytes device_budget;
  bool recompute;
  bool spill;
};
constexpr Machine kMachines[] = {{"all kept", GiB(1), true, false},
                                 {"all spilled", Bytes(0), false, true},
                                 {"redone or kept", Bytes(0), true, false},
                                 {"redone or spilled", Bytes(0), true, true},
                                 {"some of each", KiB(48), true, true}};

Options options_of(const Machine& machine, const Folder& folder) {
  Options options = machine.spill ? spilling(folder, machine.device_budget) : keeping(machine.device_budget);
  options.recompute = machine.recompute;
  options.on_full = OnFull::kKeep;
  return options;
}

/// To open a store on this machine's own topology takes longer than a graph.
void pretend_a_small_machine() {
  ASSERT_EQ(::setenv("HWLOC_SYNTHETIC", "numa:1 pu:2", 1), 0);
}

void expect_same(const GraphOutcome& outcome, const GraphOutcome& plain) {
  ASSERT_EQ(comparable(outcome.errors), comparable(plain.errors));
  ASSERT_TRUE(same_bits(outcome.gradients, plain.gradients));
}

TEST(RandomGraphSweep, SameBitsAndSameErrors) {
  const Folder folder;
  pretend_a_small_machine();
  // Stores of many graphs: what a call site was once seen to do must hold for others.
  std::vector<std::unique_ptr<Store>> stores;
  const auto open_stores = [&] {
    stores.clear();
    for (const Machine& machine : kMachines) {
      stores.push_back(std::make_unique<Store>(options_of(machine, folder)));
      stores.back()->on_warning([](const std::string&) {});
      stores.back()->core()->use_costly_recipes(true);
    }
  };
  open_stores();
  Count kept, spilled, recomputed;
  const uint64_t tried = sweep("random autograd graphs", 10'000, [&](uint64_t seed) {
    const GraphOutcome plain = run_random_graph(seed, {});
    {
      SCOPED_TRACE("checkpoints alone");
      ASSERT_NO_FATAL_FAILURE(expect_same(run_random_graph(seed, {.checkpoints = true}), plain));
    }
    for (size_t i = 0; i < stores.size(); ++i) {
      SCOPED_TRACE(kMachines[i].name);
      for (const bool checkpoints : {false, true}) {
        SCOPED_TRACE(checkpoints ? "checkpoints" : "no checkpoints");
        const Treatment treatment{.store = stores[i].get(), .checkpoints = checkpoints};
        ASSERT_NO_FATAL_FAILURE(expect_same(run_random_graph(seed, treatment), plain));
      }
    }
    if (plain.left > 0) return open_stores();  // what torch never frees stays in their counts
    for (size_t i = 0; i < stores.size(); ++i) {
      SCOPED_TRACE(kMachines[i].name);
      expect_all_is_over(*stores[i]);
    }
    kept = stores[0]->stats().kept;
    spilled = stores[1]->stats().spilled;
    recomputed = stores[2]->stats().recomputed;
  });
  if (tried == 1) return;  // what was asked for alone need not hold all
  EXPECT_GT(kept.tensors, 0);
  EXPECT_GT(spilled.tensors, 0);
  EXPECT_GT(recomputed.tensors, 0);
}

int64_t tensors_of(const Fates& fates) {
  return fates.kept.tensors + fates.offloaded.tensors + fates.spilled.tensors + fates.recomputed.tensors;
}

/// What each step of a program saves is kept, moved and made again in turn, whatever becomes of the rest.
TEST(RandomGraphSweep, EachStepsActionForcedInTurn) {
  const Folder folder;
  pretend_a_small_machine();
  std::unique_ptr<Store> store;
  const auto of_forced = [&] {
    const auto regions = store->stats().regions;
    const auto found = regions.find("forced");
    return found != regions.end() ? found->second : Fates();
  };
  Fates forced;
  const auto note = [&] {
    if (store) forced += of_forced();
  };
  const auto open = [&] {
    note();
    store = std::make_unique<Store>(options_of(kMachines[4], folder));
    store->on_warning([](const std::string&) {});
    store->core()->use_costly_recipes(true);
  };
  open();
  const uint64_t tried = sweep(
      "random autograd graphs, each step's action forced", 10'000,
      [&](uint64_t seed) {
        const GraphOutcome plain = run_random_graph(seed, {});
        for (int64_t step = 0; step < plain.steps; ++step) {
          const int64_t before = tensors_of(of_forced());
          for (const Policy policy : {Policy::kKeep, Policy::kSpill, Policy::kRecompute}) {
            SCOPED_TRACE("step " + std::to_string(step) + ", policy " + std::to_string(static_cast<int>(policy)));
            const Treatment treatment{.store = store.get(), .checkpoints = true, .forced = {{step, policy}}};
            ASSERT_NO_FATAL_FAILURE(expect_same(run_random_graph(seed, treatment), plain));
            // A step that saves nothing of its own has nothing to force: the other two would be the same run again.
            if (plain.left == 0 && tensors_of(of_forced()) == before) break;
          }
        }
        if (plain.left > 0) return open();  // what torch never frees stays in its counts
        expect_all_is_over(*store);
      },
      15);
  note();
  if (tried == 1) return;  // what was asked for alone need not hold all
  EXPECT_GT(forced.kept.tensors, 0);
  EXPECT_GT(forced.spilled.tensors, 0);
  EXPECT_GT(forced.recomputed.tensors, 0);
}

}  // namespace
}  // namespace ebbtide::test
