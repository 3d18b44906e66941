// Random programs, every way of keeping their tensors in turn: the same bits, and the same refusals.
#include <ebbtide/hooks/offload_scope.h>

#include <gtest/gtest.h>
#include <tests/hooks/support.h>
#include <tests/support/random_graph.h>

#include <chrono>
#include <cstdlib>
#include <optional>
#include <string>

namespace ebbtide::test {
namespace {

enum class Action { kKeep, kSpill, kRedo, kRedoOrSpill, kSqueeze };
constexpr Action kActions[] = {Action::kKeep, Action::kSpill, Action::kRedo, Action::kRedoOrSpill, Action::kSqueeze};

Options options_for(Action action, const Folder& folder) {
  Options options = spilling(folder);
  switch (action) {
    case Action::kKeep:
      return keeping();
    case Action::kSpill:
      options.recompute = false;
      break;
    case Action::kRedo:
      options = keeping(Bytes(0));
      options.on_full = OnFull::kKeep;
      break;
    case Action::kRedoOrSpill:
      break;
    case Action::kSqueeze:
      options.device_budget = KiB(48);
  }
  return options;
}

bool same(const GraphResult& a, const GraphResult& b) {
  if (a.error.empty() != b.error.empty() || a.tensors.size() != b.tensors.size()) return false;
  for (size_t i = 0; i < a.tensors.size(); ++i) {
    if (a.tensors[i].defined() != b.tensors[i].defined()) return false;
    if (a.tensors[i].defined() && !same_bits(a.tensors[i], b.tensors[i])) return false;
  }
  return true;
}

/// EBBTIDE_SWEEP_SECONDS long; with EBBTIDE_LONG, 10^4 graphs. EBBTIDE_SWEEP_SEED begins elsewhere.
TEST(RecipeSweep, RandomGraphsGiveTheirBits) {
  const char* const seconds = std::getenv("EBBTIDE_SWEEP_SECONDS");
  const char* const first = std::getenv("EBBTIDE_SWEEP_SEED");
  const bool is_long = std::getenv("EBBTIDE_LONG") != nullptr;
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(seconds ? std::atoi(seconds) : 90);
  const uint64_t begin = first ? std::strtoull(first, nullptr, 10) : 1;
  const Folder folder;
  std::vector<std::unique_ptr<Store>> stores;  // of many graphs: what a site was once seen to do must hold for others
  for (const Action action : kActions) {
    stores.push_back(std::make_unique<Store>(options_for(action, folder)));
    stores.back()->on_warning([](const std::string&) {});
  }
  uint64_t seed = begin;
  int64_t refused = 0;
  const auto goes_on = [&] {
    return is_long ? seed < begin + 10000 : seed < begin + 20 || std::chrono::steady_clock::now() < end;
  };
  for (; goes_on(); ++seed) {
    const RandomGraph graph(seed);
    const GraphResult reference = graph.run([](const auto& forward) { forward(); });
    refused += !reference.error.empty();
    for (size_t i = 0; i < stores.size(); ++i) {
      const GraphResult result = graph.run([&](const auto& forward) {
        OffloadScope scope(*stores[i]);
        forward();
      });
      ASSERT_TRUE(same(result, reference))
          << "seed " << seed << ", action " << i << "\nplain: " << reference.error << "\nstore: " << result.error;
    }
  }
  const int64_t graphs = static_cast<int64_t>(seed - begin);
  for (const auto& store : stores) expect_all_is_over(*store);
  EXPECT_GT(stores[2]->stats().recomputed.tensors, graphs / 2);
  EXPECT_GT(stores[3]->stats().recomputed.tensors, 0);
  EXPECT_GT(stores[1]->stats().spilled.tensors, graphs / 2);
  EXPECT_LT(refused, graphs / 2) << "errors are not what this is about";
  std::printf("%lld graphs, %lld of them refused by torch; redone:", static_cast<long long>(graphs),
              static_cast<long long>(refused));
  for (const auto& [op, count] : stores[2]->stats().recomputed_ops)
    std::printf(" %s %lld", op.c_str(), static_cast<long long>(count.tensors));
  std::printf("; unequal:");
  for (const auto& [op, sites] : stores[2]->stats().unequal_redos)
    std::printf(" %s %lld", op.c_str(), static_cast<long long>(sites));
  std::printf("\n");
}

}  // namespace
}  // namespace ebbtide::test
