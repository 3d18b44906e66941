// How long planning takes, and how near plans come to the least time possible. Prints one row of JSON a line.
#include <ebbtide/store/plan.h>

#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "pass_cost.h"
#include "row_printer.h"
#include "tests/store/profiles.h"

namespace {

using namespace ebbtide;
using namespace ebbtide::bench;
using namespace ebbtide::test;

constexpr bench::RowPrinter rows{"planner"};

Budgets share(const Profile& profile, int percent) {
  return {.device = saved(profile) * percent / 100};
}

/// CPU seconds of the fastest of some plans.
double fastest(int layers, int rounds) {
  const Profile profile = Transformer{.layers = layers, .sigma = 0.6}.profile();
  double best = std::numeric_limits<double>::infinity();
  for (int i = 0; i < rounds; ++i) {
    const double start = cpu_seconds();
    const Plan result = plan(profile, Accelerator().machine(), share(profile, 10));
    const double took = cpu_seconds() - start;
    if (result.actions.size() == profile.records.size()) best = std::min(best, took);
  }
  return best;
}

// As the model of an H200, an A100 and an RTX 4090.
const std::vector<Accelerator> kAccelerators = {{}, {2.5e14, 1.6e12, 25e9, 20e9}, {1.5e14, 0.8e12, 25e9, 20e9}};

/// Worst distance from the bound, in percent; counts plans above one treatment for all.
double worst_gap(double sigma, int seeds, int* above) {
  double worst = 0;
  for (const Accelerator& accelerator : kAccelerators) {
    for (int seed = 1; seed <= seeds; ++seed) {
      const Profile profile =
          Transformer{.sigma = sigma, .seed = static_cast<uint64_t>(seed), .accelerator = accelerator}.profile();
      for (const int percent : {5, 10, 20, 30, 50, 75, 100}) {
        const Budgets budgets = share(profile, percent);
        const Plan result = plan(profile, accelerator.machine(), budgets);
        worst = std::max(worst, 100 * (result.predicted.step_s / result.lower_bound_s - 1));
        const std::vector<Action> moved(profile.records.size(), Action::kOffload);
        const double offload_all_s = Simulator(profile, accelerator.machine(), budgets).run(moved).step_s;
        *above += result.predicted.step_s > std::min(result.recompute_all_s, offload_all_s) * (1 + 1e-12) ||
                  result.predicted.device_peak > budgets.device;
      }
    }
  }
  return worst;
}

/// Worst distance from the best of all 3^9 treatments, in percent, over random passes of nine records.
double worst_against_brute_force(int passes) {
  double worst = 0;
  for (uint64_t seed = 1000; passes > 0; ++seed) {
    std::mt19937_64 random(seed);
    const Profile profile = random_profile(random, 9);
    const Machine machine = random_machine(random);
    if (machine.link && machine.disk) continue;  // four treatments a record: too many to try
    --passes;
    const Budgets budgets = share(profile, static_cast<int>(20 + random() % 70));
    const Plan result = plan(profile, machine, budgets);
    const Bytes peak = std::max(budgets.device, result.predicted.device_peak);
    Simulator simulator(profile, machine, budgets);
    double best = std::numeric_limits<double>::infinity();
    constexpr Action kAll[] = {Action::kKeep, Action::kOffload, Action::kRecompute};
    std::vector<Action> actions(9);
    for (int number = 0; number < 19683; ++number) {
      for (int i = 0, rest = number; i < 9; ++i, rest /= 3) actions[static_cast<size_t>(i)] = kAll[rest % 3];
      const Simulated simulated = simulator.run(actions);
      if (simulated.device_peak <= peak) best = std::min(best, simulated.step_s);
    }
    worst = std::max(worst, 100 * (result.predicted.step_s / best - 1));
  }
  return worst;
}

void print_pass_cost() {
  const auto folder = std::filesystem::temp_directory_path() / ("ebbtide-planner-bench-" + std::to_string(::getpid()));
  std::filesystem::create_directories(folder);
  const PassCost few = KeptTensors(1'000, folder.string()).measure(200);
  const PassCost many = KeptTensors(100'000, folder.string()).measure(5);
  std::filesystem::remove_all(folder);
  rows.at_most("a pack under a plan, to what is decided of it, 1,000 a pass, CPU time", 1e9 * few.pack, "ns", 300);
  rows.at_most("a pack, 100,000 a pass to 1,000", many.pack / few.pack, "times", 2);
  rows.row("a tensor under a plan, from its pack to its death, 1,000 a pass", 1e9 * few.whole, "ns");
  rows.at_most("a tensor from its pack to its death, 100,000 a pass to 1,000", many.whole / few.whole, "times", 2);
  rows.row("these passes followed plans", few.planned && many.planned, "", "== 1", few.planned && many.planned);
}

}  // namespace

int main() {
  print_pass_cost();
  rows.at_most("plan of 1,008 records, CPU time", 1e3 * fastest(84, 9), "ms", 15);
  rows.at_most("plan of 100,008 records, CPU time", fastest(8334, 1), "s", 2);
  int above = 0;
  rows.at_most("above the bound, transformers, 5 to 100%, worst", worst_gap(0, 1, &above), "%", 2);
  rows.at_most("above the bound, random transformers, 5 to 100%, worst", worst_gap(0.6, 5, &above), "%", 5);
  rows.at_most("above brute force, nine records, worst of 60", worst_against_brute_force(60), "%", 1.5);
  rows.row("plans above recompute-all or offload-all, or over budget", above, "", "== 0", above == 0);
  const Profile profile = Transformer().profile();
  for (const int percent : {10, 20, 30, 50}) {
    const Plan result = plan(profile, Accelerator().machine(), share(profile, percent));
    const std::string name = "step, 7B, 4096 tokens, 55 GB/s, " + std::to_string(percent) + "%: ";
    rows.row(name + "planned", 100 * (result.predicted.step_s / profile.seconds - 1), "% more");
    rows.row(name + "bound", 100 * (result.lower_bound_s / profile.seconds - 1), "% more");
  }
  return 0;
}
