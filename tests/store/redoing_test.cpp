// Records with recipes: when their bytes are let go of, and what makes them again.
#include <ebbtide/store/error.h>
#include <ebbtide/store/store_core.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <tests/store/fake_storage.h>
#include <tests/support/eventually.h>

#include <unistd.h>

#include <filesystem>
#include <memory>
#include <optional>
#include <vector>

namespace ebbtide::test {
namespace {

constexpr size_t kSize = 64 << 10;
constexpr Bytes kBytes{kSize};

/// Adds up its inputs' bytes, and one.
class Sum final : public FakeRecipe {
 public:
  /// `versions`: of the inputs; 0 is the one that was read.
  Sum(std::vector<std::shared_ptr<Record>> inputs, std::vector<const uint32_t*> versions, Bytes end = kBytes)
      : FakeRecipe(std::move(inputs), Bytes(0), end), versions_(std::move(versions)) {}

  bool cheap() const noexcept override { return !costly; }
  bool inputs_unchanged() const noexcept override {
    return std::ranges::all_of(versions_, [](const uint32_t* version) { return *version == 0; });
  }
  Memory run(StoreCore& core) const override {
    ++runs;
    std::vector<std::shared_ptr<FakeStorage>> values;
    for (const auto& input : inputs()) values.push_back(unpack(core, *input));
    return of(values);
  }
  template <class Values>
  static Memory of(const Values& values) {
    Memory sum(kSize);
    for (size_t i = 0; i < kSize; ++i) {
      unsigned total = 1;
      for (const auto& value : values) total += static_cast<unsigned>(value->data()[i]);
      sum.data()[i] = static_cast<std::byte>(total);
    }
    return sum;
  }

  mutable int runs = 0;
  bool costly = false;

 private:
  const std::vector<const uint32_t*> versions_;
};

class RedoingTest : public testing::Test {
 protected:
  RedoingTest() : folder_(std::filesystem::temp_directory_path() / ("ebbtide-redoing-" + std::to_string(::getpid()))) {
    std::filesystem::create_directories(folder_);
  }
  ~RedoingTest() override { std::filesystem::remove_all(folder_); }

  Options options(Bytes device_budget) const {
    Options options;
    options.device_budget = device_budget;
    options.spill_to = {folder_.string()};
    options.host_budget = MiB(8);
    options.min_bytes = KiB(4);
    options.verify = true;
    return options;
  }
  static Memory filled(uint64_t seed) {
    Memory memory(kSize);
    memory.fill(seed);
    return memory;
  }

  /// x, and y made of it; y has a recipe. The test holds both in `x` and `y` until it lets go.
  struct Pair {
    std::optional<Memory> x, y;
    std::shared_ptr<uint32_t> version = std::make_shared<uint32_t>(0);
    std::shared_ptr<Record> record_of_x, record_of_y;
    std::shared_ptr<Sum> recipe;
    std::vector<std::byte> bytes;
    StoreCore::Packed packed;
  };
  Pair pair(StoreCore& core, uint64_t seed = 1) {
    Pair made;
    made.x = filled(seed);
    made.record_of_x = pack(core, pass_, *made.x);
    made.y = Sum::of(std::vector<const Memory*>{&*made.x});
    made.bytes = copy(*made.y);
    made.packed = core.pack(pass_, whole(*made.y), [&] { return std::make_shared<FakeStorage>(*made.y); });
    made.record_of_y = made.packed.record;
    made.recipe =
        std::make_shared<Sum>(std::vector{made.record_of_x}, std::vector<const uint32_t*>{made.version.get()});
    made.recipe->costly = costly_;
    core.offer_recipe(*made.record_of_y, made.recipe);
    return made;
  }
  void release(StoreCore& core, Pair& pair) {
    pair.x.reset();
    pair.y.reset();
    core.scope_ended(pass_);
  }

  std::filesystem::path folder_;
  std::shared_ptr<Pass> pass_;
  bool costly_ = false;
};

/// It is to be let go of at once, and others hold it as they hold the one before it: a look at them all comes to an end.
TEST_F(RedoingTest, WhatGetsItsRecipeInOtherHandsIsLookedAtOnce) {
  auto core = StoreCore::open(options(Bytes(0)));
  std::shared_ptr<Pass> pass;
  const Memory input = filled(1), result = filled(2);
  const auto first = pack(*core, pass, input);
  auto view = whole(result);
  view.region = RegionLabel::of("again", Policy::kRecompute);
  const auto second = core->pack(pass, view, [&] { return std::make_shared<FakeStorage>(result); }).record;
  core->offer_recipe(*second, std::make_shared<Sum>(std::vector{first}, std::vector<const uint32_t*>{&input.version()}));
  core->scope_ended(pass);
  EXPECT_EQ(core->stats().referenced_elsewhere, Bytes(2 * kSize));
}

TEST_F(RedoingTest, OverBudgetTheBytesGoAndComeAgainFromTheirInputs) {
  auto core = StoreCore::open(options(kBytes));
  Pair made = pair(*core);
  EXPECT_TRUE(made.packed.wants_recipes);
  EXPECT_EQ(made.packed.wanted, StoreCore::RecipeWanted::kCheap);
  release(*core, made);
  EXPECT_EQ(core->stats().device.bytes, kBytes) << "x alone";
  EXPECT_EQ(core->stats().recipe_bytes, Sum::kOwnBytes);
  {
    const auto y = unpack(*core, *made.record_of_y);
    EXPECT_EQ(copy(*y), made.bytes);
    EXPECT_EQ(unpack(*core, *made.record_of_y), y) << "still there";
  }
  EXPECT_EQ(made.recipe->runs, 1);
  EXPECT_EQ(core->stats().recompute_s, 0.5);
  made.recipe.reset();
  made.record_of_y.reset();
  made.packed.record.reset();
  made.record_of_x.reset();
  const Stats stats = core->stats();
  EXPECT_EQ(stats.recomputed.tensors, 1);
  EXPECT_EQ(stats.recomputed.bytes, kBytes);
  EXPECT_EQ(stats.kept.tensors, 1);
  EXPECT_EQ(stats.recipe_bytes, Bytes(0));
  EXPECT_EQ(stats.recipe_bytes_peak, Sum::kOwnBytes);
  EXPECT_EQ(core->last_pass().recomputed.tensors, 1);
  EXPECT_EQ(stats.device.bytes, Bytes(0));
}

TEST_F(RedoingTest, ARecipeThatIsGivenUpMakesTheBytesOnceMoreAndTheyLeaveAsOthersDo) {
  auto core = StoreCore::open(options(Bytes(0)));
  Pair made = pair(*core);
  release(*core, made);
  ASSERT_TRUE(core->give_recipe_up(*made.record_of_y)) << "its bytes were let go of";
  EXPECT_EQ(copy(*unpack(*core, *made.record_of_y)), made.bytes);
  core->let_leave(*made.record_of_y);
  *made.version = 1;  // what the recipe read is there no longer
  EXPECT_FALSE(core->give_recipe_up(*made.record_of_y));
  EXPECT_EQ(core->stats().device.bytes, Bytes(0));
  EXPECT_EQ(copy(*unpack(*core, *made.record_of_y)), made.bytes);
  EXPECT_EQ(made.recipe->runs, 1);
  made = {};
  const Stats stats = core->stats();
  EXPECT_EQ(stats.spilled.tensors, 2);
  EXPECT_EQ(stats.recomputed.tensors, 0);
  EXPECT_TRUE(stats.recomputed_ops.empty());
}

TEST_F(RedoingTest, ARecipeThatIsGivenUpBeforeItWasUsedLeavesBytes) {
  auto core = StoreCore::open(options(kBytes));
  Pair made = pair(*core);
  EXPECT_FALSE(core->give_recipe_up(*made.record_of_y));
  release(*core, made);
  EXPECT_EQ(copy(*unpack(*core, *made.record_of_y)), made.bytes);
  EXPECT_EQ(made.recipe->runs, 0);
}

TEST_F(RedoingTest, CostlyRecipesAreNotUsedUnlessAskedFor) {
  for (const bool used : {false, true}) {
    auto core = StoreCore::open(options(kBytes));
    core->use_costly_recipes(used);
    pass_.reset();
    costly_ = true;
    Pair made = pair(*core);
    release(*core, made);
    EXPECT_EQ(copy(*unpack(*core, *made.record_of_y)), made.bytes);
    EXPECT_EQ(made.recipe->runs, used ? 1 : 0);
  }
}

TEST_F(RedoingTest, WithinBudgetNothingIsRedone) {
  auto core = StoreCore::open(options(MiB(64)));
  Pair made = pair(*core);
  EXPECT_FALSE(made.packed.wants_recipes);
  const std::byte* const there = made.y->data();
  release(*core, made);
  EXPECT_EQ(unpack(*core, *made.record_of_y)->data(), there);
  EXPECT_EQ(made.recipe->runs, 0);
}

TEST_F(RedoingTest, SwitchedOffNoRecipeIsWanted) {
  Options off = options(Bytes(0));
  off.recompute = false;
  auto core = StoreCore::open(off);
  EXPECT_FALSE(pair(*core).packed.wants_recipes);
}

TEST_F(RedoingTest, WithInputsInOtherHandsTheBytesLeaveInstead) {
  auto core = StoreCore::open(options(Bytes(0)));
  Pair made = pair(*core);
  const Memory held = *made.x;
  release(*core, made);
  EXPECT_EQ(core->stats().device.bytes, Bytes(0));
  EXPECT_GT(core->stats().disk_write.bytes, Bytes(0)) << "y, while somebody may still write to x";
  EXPECT_EQ(copy(*unpack(*core, *made.record_of_y)), made.bytes);
  EXPECT_EQ(made.recipe->runs, 0);
}

TEST_F(RedoingTest, AnInputThatWasWrittenToIsNotReadAgain) {
  auto core = StoreCore::open(options(Bytes(0)));
  Pair made = pair(*core);
  made.x->fill(99);
  *made.version = 1;
  release(*core, made);
  EXPECT_EQ(copy(*unpack(*core, *made.record_of_y)), made.bytes);
  EXPECT_EQ(made.recipe->runs, 0);
}

TEST_F(RedoingTest, ARecipeThatDoesNotCoverTheRecordIsNotUsed) {
  auto core = StoreCore::open(options(Bytes(0)));
  Memory x = filled(1);
  auto record_of_x = pack(*core, pass_, x);
  const uint32_t version = 0;
  auto record = [&] {
    const Memory y = filled(2);
    auto packed = pack(*core, pass_, y);
    core->offer_recipe(*packed, std::make_shared<Sum>(std::vector{record_of_x}, std::vector{&version}, kBytes / 2));
    return packed;
  }();
  x = filled(3);
  core->scope_ended(pass_);
  EXPECT_EQ(copy(*unpack(*core, *record)), copy(filled(2)));
}

TEST_F(RedoingTest, ARecordIsRedoneAsOftenAsItIsAskedForAndLetGo) {
  auto core = StoreCore::open(options(Bytes(0)));
  Pair made = pair(*core);
  release(*core, made);
  for (int again = 1; again <= 3; ++again) {
    EXPECT_EQ(copy(*unpack(*core, *made.record_of_y)), made.bytes);
    core->scope_ended(pass_);  // over budget: it goes
    EXPECT_EQ(made.recipe->runs, again);
    EXPECT_EQ(core->stats().device.bytes, Bytes(0));
  }
  EXPECT_LE(core->stats().disk_write.bytes, kBytes) << "x, once";
}

TEST_F(RedoingTest, RecipesChainThroughRecordsThatAreRedoneThemselves) {
  auto core = StoreCore::open(options(Bytes(0)));
  Pair made = pair(*core);
  const Memory z = Sum::of(std::vector<const Memory*>{&*made.y, &*made.x});
  const std::vector<std::byte> bytes = copy(z);
  auto record_of_z = [&, last = z] { return pack(*core, pass_, last); }();
  core->offer_recipe(*record_of_z,
                     std::make_shared<Sum>(std::vector{made.record_of_y, made.record_of_x},
                                           std::vector<const uint32_t*>{made.version.get(), made.version.get()}));
  const_cast<Memory&>(z) = Memory(8);
  release(*core, made);
  made.record_of_x.reset();  // the recipes still need it
  EXPECT_EQ(core->stats().device.bytes, Bytes(0));
  EXPECT_EQ(copy(*unpack(*core, *record_of_z)), bytes);
  EXPECT_EQ(made.recipe->runs, 1);
  EXPECT_EQ(copy(*unpack(*core, *made.record_of_y)), made.bytes);
}

TEST_F(RedoingTest, ALongChainEndsInBytes) {
  auto core = StoreCore::open(options(Bytes(0)));
  const uint32_t version = 0;
  std::vector<std::shared_ptr<Record>> records;
  std::vector<std::vector<std::byte>> bytes;
  std::optional<Memory> last = filled(1);
  for (int i = 0; i < 2 * StoreCore::kDeepestRecipe; ++i) {
    records.push_back(pack(*core, pass_, *last));
    bytes.push_back(copy(*last));
    if (i > 0)
      core->offer_recipe(*records[i], std::make_shared<Sum>(std::vector{records[i - 1]}, std::vector{&version}));
    last = Sum::of(std::vector<const Memory*>{&*last});
  }
  last.reset();
  core->scope_ended(pass_);
  EXPECT_EQ(core->stats().device.bytes, Bytes(0));
  while (!records.empty()) {
    EXPECT_EQ(copy(*unpack(*core, *records.back())), bytes[records.size() - 1]);
    records.pop_back();
  }
  EXPECT_EQ(core->stats().recomputed.tensors, 2 * StoreCore::kDeepestRecipe - 2);
  EXPECT_EQ(core->stats().spilled.tensors, 2);
}

TEST_F(RedoingTest, ARecordNeverRestsOnItselfNorOnAnotherStore) {
  auto core = StoreCore::open(options(Bytes(0)));
  auto other = StoreCore::open(options(Bytes(0)));
  Pair made = pair(*core);
  const uint32_t version = 0;
  core->offer_recipe(*made.record_of_x, std::make_shared<Sum>(std::vector{made.record_of_y}, std::vector{&version}));
  std::shared_ptr<Pass> pass;
  Memory foreign = filled(5);
  auto record = pack(*other, pass, foreign);
  other->offer_recipe(*record, std::make_shared<Sum>(std::vector{made.record_of_y}, std::vector{&version}));
  foreign = filled(6);
  other->scope_ended(pass);
  release(*core, made);
  EXPECT_EQ(copy(*unpack(*other, *record)), copy(filled(5)));
  EXPECT_EQ(copy(*unpack(*core, *made.record_of_x)), copy(filled(1)));
  EXPECT_EQ(made.recipe->runs, 0);
}

TEST_F(RedoingTest, VerifySeesARedoThatWentWrong) {
  auto core = StoreCore::open(options(Bytes(0)));
  Pair made = pair(*core);
  release(*core, made);
  const StoreCore::Unpacked unpacked = core->unpack(*made.record_of_y);
  ASSERT_TRUE(unpacked.recipe);
  EXPECT_THROW(core->redone(*made.record_of_y, std::make_shared<FakeStorage>(filled(7)), kHostStream, 0),
               CorruptTensor);
}

TEST_F(RedoingTest, TheInputsOfWhatIsRedoneNextAreFetchedAhead) {
  auto core = StoreCore::open(options(kBytes));
  {  // Memory to fetch ahead into is there once something was waited for.
    std::vector<std::shared_ptr<Record>> two{pack(*core, pass_, filled(6)), pack(*core, pass_, filled(7))};
    core->scope_ended(pass_);
    for (const auto& record : two) (void)unpack(*core, *record);
  }
  Pair made = pair(*core, 1);
  made.x.reset();
  made.y.reset();
  {
    const Memory later = filled(8);
    made.packed.record = pack(*core, pass_, later);
    ASSERT_TRUE(eventually([&] { return core->stats().spill.bytes >= kBytes; }));
  }
  release(*core, made);
  // x, whose copy was there first, has left for what was packed last; the backward asks for that first, and lets it go.
  EXPECT_EQ(core->stats().device.bytes, kBytes);
  (void)core->task_began(*made.packed.record, 1);
  (void)unpack(*core, *made.packed.record);
  made.packed.record.reset();
  EXPECT_EQ(core->stats().device.bytes, kBytes) << "x is on its way";
  EXPECT_EQ(copy(*unpack(*core, *made.record_of_y)), made.bytes);
  EXPECT_EQ(made.recipe->runs, 1);
  core->task_ended(*pass_, 1);
}

}  // namespace
}  // namespace ebbtide::test
