#include <ebbtide/hooks/parameter_registry.h>

#include <ATen/ops/empty.h>
#include <tests/hooks/support.h>

#include <atomic>
#include <thread>

namespace ebbtide::test {
namespace {

const c10::StorageImpl& storage(const at::Tensor& tensor) {
  return *tensor.storage().unsafeGetStorageImpl();
}

TEST(ParameterRegistryTest, KnowsStoragesAndSoEveryViewOfThem) {
  ParameterRegistry registry;
  const at::Tensor weight = leaf();
  registry.add(weight);
  EXPECT_TRUE(registry.contains(storage(weight)));
  EXPECT_TRUE(registry.contains(storage(weight.detach().view({64, 64}).transpose(0, 1))));
  EXPECT_FALSE(registry.contains(storage(weight.detach().clone())));
}

TEST(ParameterRegistryTest, KnowsWhatAnOpHasReadSinceAForwardBegan) {
  ParameterRegistry registry;
  const at::Tensor weight = leaf();
  registry.add(weight);
  const at::Tensor early = weight * 2;
  registry.take_down_versions();
  const at::Tensor late = weight * 2;
  EXPECT_FALSE(registry.unchanged_since(*early.grad_fn(), weight));
  EXPECT_TRUE(registry.unchanged_since(*late.grad_fn(), weight));
  EXPECT_FALSE(registry.unchanged_since(*late.grad_fn(), leaf()));
  std::thread([&] { EXPECT_FALSE(registry.unchanged_since(*(weight * 2).grad_fn(), weight)); }).join();
  weight.detach().mul_(3);
  EXPECT_FALSE(registry.unchanged_since(*late.grad_fn(), weight));
  registry.take_down_versions();
  EXPECT_FALSE(registry.unchanged_since(*late.grad_fn(), weight));
  EXPECT_TRUE(registry.unchanged_since(*(weight * 2).grad_fn(), weight));
}

TEST(ParameterRegistryTest, OfWhatHasNoStorageThereIsNothingToKnow) {
  ParameterRegistry registry;
  registry.add(at::Tensor());
  registry.add(leaf().detach().view({64, 64}).to_sparse());
  EXPECT_FALSE(registry.contains(storage(leaf())));
}

TEST(ParameterRegistryTest, HoldsNoBytesAndMistakesNoNewStorageForADeadOne) {
  ParameterRegistry registry;
  c10::weak_intrusive_ptr<c10::StorageImpl> dead = [&] {
    const at::Tensor weight = leaf();
    registry.add(weight);
    return weight.storage().getWeakStorageImpl();
  }();
  EXPECT_TRUE(dead.expired()) << "the registry kept a parameter alive";
  dead.reset();
  std::vector<at::Tensor> later;  // some are where the dead one was
  for (int i = 0; i < 1000; ++i) later.push_back(at::empty({kFloats}, at::kFloat));
  for (const at::Tensor& tensor : later) EXPECT_FALSE(registry.contains(storage(tensor)));
}

TEST(ParameterRegistryTest, IsUsedFromSeveralThreads) {
  ParameterRegistry registry;
  const at::Tensor known = leaf();
  registry.add(known);
  std::atomic<int> missed{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 200; ++i) {
        const at::Tensor mine = leaf(t, 16);
        registry.add(mine);
        if (!registry.contains(storage(mine)) || !registry.contains(storage(known))) ++missed;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(missed, 0);
}

}  // namespace
}  // namespace ebbtide::test
