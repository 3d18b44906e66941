// Random programs against a model: what was packed comes back, budgets hold after every event, nothing is left.
#include <ebbtide/store/store_core.h>

#include <gtest/gtest.h>
#include <tests/store/fake_storage.h>

#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <random>
#include <string>
#include <thread>
#include <vector>

namespace ebbtide::test {
namespace {

struct Saved {
  std::shared_ptr<Record> record;
  uint64_t seed = 0;
  size_t bytes = 0;
};

/// The bytes of its input.
class Copy final : public FakeRecipe {
 public:
  explicit Copy(std::shared_ptr<Record> input, size_t bytes)
      : FakeRecipe({std::move(input)}, Bytes(0), Bytes(static_cast<int64_t>(bytes))) {}
  bool inputs_unchanged() const noexcept override { return true; }
  Memory run(StoreCore& core) const override {
    Memory made(static_cast<size_t>(end().count()));
    std::memcpy(made.data(), unpack(core, *inputs()[0])->data(), made.bytes());
    return made;
  }
};

/// One thread's program: forwards of random tensors, some held elsewhere for a while, some saved twice, some with a
/// recipe; backwards in reverse, in order, partial, or none.
void random_program(StoreCore& core, uint64_t seed, int passes, Bytes allowed) {
  std::mt19937_64 random(seed);
  const auto check_budget = [&] { ASSERT_LE(core.stats().device.bytes, allowed); };
  for (int p = 0; p < passes; ++p) {
    std::shared_ptr<Pass> pass;
    std::vector<Saved> saved;
    std::vector<Memory> elsewhere;
    const int count = static_cast<int>(random() % 24);
    for (int i = 0; i < count; ++i) {
      const size_t bytes = 4096 + random() % (96 << 10);
      const uint64_t content = random();
      Memory m(bytes);
      m.fill(content);
      saved.push_back({pack(core, pass, m), content, bytes});
      if (random() % 4 == 0) saved.push_back({pack(core, pass, m), content, bytes});
      if (random() % 5 == 0) elsewhere.push_back(m);
      if (random() % 3 == 0) {
        Memory same(bytes);
        same.fill(content);
        std::shared_ptr<Record> input = saved.back().record;
        saved.push_back({pack(core, pass, same), content, bytes});
        core.offer_recipe(*saved.back().record, std::make_shared<Copy>(std::move(input), bytes));
      }
      if (random() % 7 == 0) elsewhere.clear();
      check_budget();
    }
    elsewhere.clear();
    core.scope_ended(pass);
    const uint64_t kind = random() % 5;
    if (kind == 0) continue;  // dropped without backward
    const int task = static_cast<int>(seed * 100000 + static_cast<uint64_t>(p));
    bool began = false;
    while (!saved.empty()) {
      const size_t index = kind == 1 ? random() % saved.size() : saved.size() - 1;
      Saved& one = saved[index];
      began |= core.task_began(*one.record, task);
      const auto storage = unpack(core, *one.record);
      Memory expected(one.bytes);
      expected.fill(one.seed);
      ASSERT_EQ(copy(*storage), copy(expected)) << "seed " << seed << " pass " << p;
      saved.erase(saved.begin() + static_cast<std::ptrdiff_t>(index));
      check_budget();
      if (kind == 2 && random() % 8 == 0) break;  // a backward that stops half-way
    }
    saved.clear();
    if (began) core.task_ended(*pass, task);
  }
}

class StoreCoreProperty : public testing::TestWithParam<int> {};

TEST_P(StoreCoreProperty, WhatWasPackedComesBackWithinBudget) {
  const auto folder = std::filesystem::temp_directory_path() / ("ebbtide-property-" + std::to_string(::getpid()));
  std::filesystem::create_directories(folder);
  const int threads = GetParam();
  const bool is_long = std::getenv("EBBTIDE_LONG") != nullptr;
  for (const Bytes budget : {Bytes(0), KiB(200), MiB(2)}) {
    Options options;
    options.device_budget = budget;
    options.spill_to = {folder.string()};
    options.host_budget = MiB(2);  // so little that it is full at times
    options.min_bytes = KiB(4);
    auto core = StoreCore::open(options);
    std::vector<std::thread> workers;
    // A tensor per thread that unpacks, and one per thread in its own pack.
    const Bytes allowed = budget + KiB(100) * (2 * threads);
    for (int t = 0; t < threads; ++t)
      workers.emplace_back(
          [&, t] { random_program(*core, static_cast<uint64_t>(1 + t), is_long ? 2000 : 40, allowed); });
    for (std::thread& worker : workers) worker.join();
    const Stats stats = core->stats();
    EXPECT_EQ(stats.device.bytes, Bytes(0));
    EXPECT_EQ(stats.referenced_elsewhere, Bytes(0));
    EXPECT_EQ(stats.packed.tensors, stats.deduplicated.tensors + stats.saved.tensors);
    EXPECT_EQ(stats.kept.tensors + stats.spilled.tensors + stats.recomputed.tensors, stats.saved.tensors);
    if (budget == Bytes(0)) EXPECT_GT(stats.recomputed.tensors, 0);
    EXPECT_LE(stats.host.peak_bytes, stats.host.budget_bytes);
    core->close();  // waits for writes of dead records that had begun, whose extents are free then
    EXPECT_EQ(core->stats().spill.bytes, Bytes(0));
    EXPECT_EQ(core->stats().handed_over, Bytes(0));
  }
  std::filesystem::remove_all(folder);
}

INSTANTIATE_TEST_SUITE_P(Threads, StoreCoreProperty, testing::Values(1, 3));

}  // namespace
}  // namespace ebbtide::test
