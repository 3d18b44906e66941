// Recipes that are not cheap, such as those of matmuls: where they are looked for and used.
#include <ebbtide/store/store_core.h>

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tests/store/device_trainer.h"
#include "tests/store/fake_storage.h"
#include "tests/store/slow_disks.h"

namespace ebbtide::test {
namespace {

/// Makes what was saved before it again: a matmul, as far as the store can tell.
class Costly final : public FakeRecipe {
 public:
  Costly(std::shared_ptr<Record> from, size_t bytes)
      : FakeRecipe({std::move(from)}, Bytes(0), Bytes(static_cast<int64_t>(bytes))) {}
  bool inputs_unchanged() const noexcept override { return true; }
  bool cheap() const noexcept override { return false; }
  std::optional<double> seconds() const noexcept override { return 1e-6; }
  Memory run(StoreCore& core) const override {
    const auto from = unpack(core, *inputs()[0]);
    Memory made(static_cast<size_t>(end().count()));
    std::memcpy(made.data(), from->data(), made.bytes());
    return made;
  }
};

/// One tensor that must be stored, and copies of it, each with a recipe.
class CostlyRecipesTest : public testing::Test {
 protected:
  static constexpr size_t kSize = 256 << 10;
  static constexpr int kCopies = 12;

  /// Which holds three of them.
  static std::shared_ptr<StoreCore> open(const std::vector<std::string>& spill_to) {
    Options options;
    options.device_budget = Bytes(3 * kSize);
    options.spill_to = spill_to;
    options.host_budget = MiB(8);
    options.min_bytes = KiB(4);
    return StoreCore::open(options);
  }

  /// Returns what was wanted of the last one.
  StoreCore::RecipeWanted step(StoreCore& core) {
    std::shared_ptr<Pass> pass;
    std::vector<std::shared_ptr<Record>> records;
    StoreCore::RecipeWanted wanted{};
    for (int i = 0; i <= kCopies; ++i) {
      Memory memory(kSize);
      memory.fill(5);
      const StoreCore::Packed packed =
          core.pack(pass, whole(memory), [&] { return std::make_shared<FakeStorage>(memory); });
      wanted = packed.wanted;
      if (i > 0 && wanted == StoreCore::RecipeWanted::kAny)
        core.offer_recipe(*packed.record, std::make_shared<Costly>(records[0], kSize));
      records.push_back(packed.record);
    }
    core.scope_ended(pass);
    EXPECT_LE(core.stats().device.bytes, core.stats().device.budget_bytes);
    Memory expected(kSize);
    expected.fill(5);
    const int task = ++tasks_;
    for (; !records.empty(); records.pop_back()) {
      (void)core.task_began(*records.back(), task);
      EXPECT_EQ(copy(*unpack(core, *records.back())), copy(expected));
    }
    core.task_ended(*pass, task);
    return wanted;
  }

  int tasks_ = 0;
};

TEST_F(CostlyRecipesTest, AreUsedWhereNothingCanLeave) {
  auto core = open({});
  EXPECT_EQ(step(*core), StoreCore::RecipeWanted::kAny);
  for (int i = 1; i < 6; ++i) step(*core);
  EXPECT_GE(core->stats().recomputed.tensors, 6 * (kCopies - 2));
  EXPECT_GT(core->stats().plans, 0) << "what is redone is chosen by its time";
}

TEST_F(CostlyRecipesTest, AreWeighedWhereMovingCostsMuch) {
  const TemporaryFolder folder("ebbtide-costly-");
  const SlowDisks disks(20e6);  // a transfer takes 13 ms, a redo, as it says, a thousandth of one
  auto core = open({folder.path()});
  EXPECT_EQ(step(*core), StoreCore::RecipeWanted::kCheap);
  for (int i = 0; i < 12 && core->stats().recomputed.tensors == 0; ++i) step(*core);
  EXPECT_GT(core->stats().recomputed.tensors, 0);
}

}  // namespace
}  // namespace ebbtide::test
