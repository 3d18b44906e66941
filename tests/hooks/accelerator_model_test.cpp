// Models on accelerators whose streams run late and interleaved: whatever the budget and the tier, the gradients are
// those of a run without the store, and nothing races.
#include <gmock/gmock.h>
#include <tests/hooks/accelerator_support.h>

#include <cstdint>
#include <optional>
#include <string>

namespace ebbtide::test {
namespace {

/// How many times its usual batch it takes to save more in a pass than 2 MiB of host memory hold with what is redone or
/// kept, and no tensor of more than 2 MiB.
int64_t times_for_disk(const std::string& name) {
  if (name == "conv") return 4;
  if (name == "mlp") return 16;
  return name == "custom_function" ? 32 : 8;
}

class AcceleratorModelTest : public testing::TestWithParam<const char*> {};

TEST_P(AcceleratorModelTest, GradientsAreThoseOfPlain) {
  const std::string name = GetParam();
  const Tensors& expected = plain(name);
  Bytes saved;  // by one of the two passes
  {
    Machine machine(to_host(GiB(1)));
    EXPECT_TRUE(same_bits(train(name, &machine.store()), expected)) << "unlimited";
    const Stats stats = machine.store().stats();
    saved = Bytes(stats.saved.bytes.count() / 2);
    EXPECT_EQ(stats.passes, 2);
    EXPECT_GT(saved, Bytes(0));
    EXPECT_EQ(stats.kept.tensors, stats.saved.tensors);
  }
  int64_t recomputed = 0;
  for (const int percent : {0, 10, 50}) {
    for (uint64_t seed = 0; seed < seeds(4); ++seed) {
      SCOPED_TRACE(std::to_string(percent) + "%, seed " + std::to_string(seed));
      const Bytes budget(saved.count() * percent / 100);
      Machine machine(to_host(budget), {.seed = seed});
      EXPECT_TRUE(same_bits(train(name, &machine.store()), expected));
      const Stats stats = machine.store().stats();
      recomputed += stats.recomputed.tensors;
      EXPECT_TRUE(stats.unequal_redos.empty());
      EXPECT_EQ(stats.passes, 2);
      EXPECT_GT(stats.offloaded.tensors, 0);
      EXPECT_EQ(stats.spilled.tensors, 0);
      EXPECT_LE(machine.tier().peak_bytes, budget + largest_saved(name));
    }
  }
  if (name == "mlp") EXPECT_GT(recomputed, 0) << "its GELU";
}

// No caller waits for a stream. So with little host memory the budget holds where copies keep pace with the program, as
// an eager device's do; behind a late one tensors stay until there is room.
TEST_P(AcceleratorModelTest, GradientsAreThoseOfPlainThroughTheDisk) {
  const std::string name = GetParam();
  const int64_t times = times_for_disk(name);
  const Tensors& expected = plain(name, times);
  const Folder folder;
  for (const int64_t budget_kib : {0, 400}) {
    for (uint64_t seed = 0; seed < seeds(4); ++seed) {
      SCOPED_TRACE(std::to_string(budget_kib) + " KiB, seed " + std::to_string(seed));
      const bool eager = seed % 3 == 0;  // and seen at once, see Machine
      Machine machine(to_disk(folder, KiB(budget_kib)),
                      {.seed = seed, .pace = eager ? std::optional(Pace::kEager) : std::nullopt});
      EXPECT_TRUE(same_bits(train(name, &machine.store(), times), expected));
      const Stats stats = machine.store().stats();
      EXPECT_LE(stats.host.peak_bytes, MiB(2));
      if (!eager) continue;
      EXPECT_GT(stats.spilled.tensors, 0);
      EXPECT_GT(stats.disk_read.bytes, Bytes(0));
      EXPECT_LE(machine.tier().peak_bytes, KiB(budget_kib) + Bytes(largest_saved(name).count() * times));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Models, AcceleratorModelTest,
                         testing::Values("mlp", "conv", "lstm", "transformer", "custom_function"),
                         [](const auto& info) { return std::string(info.param); });

TEST(AcceleratorTest, WithoutRoomAnywhereTensorsAreKept) {
  const std::string name = "mlp";
  const Tensors& expected = plain(name, /*times=*/16);
  for (uint64_t seed = 0; seed < seeds(4); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Options options = to_host(Bytes(0));
    options.host_budget = MiB(2);
    Machine machine(options, {.seed = seed});
    EXPECT_TRUE(same_bits(train(name, &machine.store(), /*times=*/16), expected));
    const Stats stats = machine.store().stats();
    EXPECT_GT(stats.kept.tensors, 0);
    EXPECT_GT(stats.offloaded.tensors, 0);
    EXPECT_LE(stats.host.peak_bytes, MiB(2));
  }
}

// After a few steps the store knows what a pass saves, and places by that.
TEST(AcceleratorTest, ManySteps) {
  constexpr int kSteps = 6;
  const auto many = [](Store* store) { return train("custom_function", store, /*times=*/1, kSteps); };
  Tensors expected;
  {
    const SimAccelerator sim;
    expected = many(nullptr);
  }
  for (const int64_t budget_kib : {0, 24, 48, 72}) {
    for (uint64_t seed = 0; seed < seeds(6); ++seed) {
      SCOPED_TRACE(std::to_string(budget_kib) + " KiB, seed " + std::to_string(seed));
      Machine machine(to_host(KiB(budget_kib)), {.seed = seed});
      EXPECT_TRUE(same_bits(many(&machine.store()), expected));
      EXPECT_EQ(machine.store().stats().passes, kSteps);
      EXPECT_LE(machine.tier().peak_bytes, KiB(budget_kib) + largest_saved("custom_function"));
    }
  }
}

}  // namespace
}  // namespace ebbtide::test
