// Ten thousand passes end with the memory that a thousand have.
#include <ebbtide/hooks/offload_scope.h>

#include <ATen/ops/layer_norm.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <malloc.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>

#include "tests/hooks/support.h"

namespace ebbtide::test {
namespace {

constexpr int kWarm = 1000;
constexpr int kAll = 10000;
// A leak of seven bytes a pass shows in the first, and one of a page in 18 passes in the second.
constexpr int64_t kHeapSlack = 64 << 10;
constexpr int64_t kResidentSlack = 2 << 20;

int64_t heap_in_use() {
  const struct mallinfo2 info = ::mallinfo2();
  return static_cast<int64_t>(info.uordblks + info.hblkhd);
}

int64_t resident_bytes() {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen("/proc/self/statm", "r"), std::fclose);
  long size = 0, resident = 0;
  if (!file || std::fscanf(file.get(), "%ld %ld", &size, &resident) != 2) throw std::runtime_error("/proc/self/statm");
  return resident * ::sysconf(_SC_PAGESIZE);
}

void expect_flat(const Store& store, const std::function<void()>& pass) {
  int64_t heap = 0, resident = 0;
  for (int number = 1; number <= kAll; ++number) {
    pass();
    if (number != kWarm) continue;
    expect_all_is_over(store);
    heap = heap_in_use();
    resident = resident_bytes();
  }
  expect_all_is_over(store);
  EXPECT_LE(heap_in_use(), heap + kHeapSlack);
  EXPECT_LE(resident_bytes(), resident + kResidentSlack);
  EXPECT_EQ(store.stats().passes, kAll);
  EXPECT_EQ(store.stats().recipe_bytes, Bytes(0));
}

/// Saves the input of each op: one that stays a leaf, and the results of others.
void pass(Store& store, const at::Tensor& x, bool backward = true) {
  at::Tensor z;
  {
    OffloadScope scope(store);
    z = ((x * 2).sin() * x.cos()).sum();
    scope.leave();
  }
  if (backward) torch::autograd::backward({z}, {});
  x.mutable_grad().reset();
}

TEST(LeakTest, TensorsThatAreKept) {
  Store store(keeping());
  const at::Tensor x = leaf();
  expect_flat(store, [&] { pass(store, x); });
  EXPECT_EQ(store.stats().kept.tensors, store.stats().saved.tensors);
}

TEST(LeakTest, PassesThatAreDropped) {
  Store store(keeping());
  const at::Tensor x = leaf();
  expect_flat(store, [&] { pass(store, x, /*backward=*/false); });
  EXPECT_EQ(store.stats().kept.tensors, store.stats().saved.tensors);
}

TEST(LeakTest, TensorsThatAreComputedAgain) {
  Options options = keeping(Bytes(0));
  options.on_full = OnFull::kKeep;
  Store store(options);
  store.on_warning([](const std::string&) {});
  const at::Tensor x = leaf(0, 64 * 64).detach().view({64, 64}).requires_grad_();
  const at::Tensor weight = leaf(1, 64).detach().requires_grad_();
  expect_flat(store, [&] {
    at::Tensor z;
    {
      OffloadScope scope(store);
      const at::Tensor normed = at::layer_norm(x * 2, {64}, weight, weight);
      z = (normed.to(at::kDouble) * normed.to(at::kDouble).sin()).sum();
      scope.leave();
    }
    torch::autograd::backward({z}, {});
    x.mutable_grad().reset();
    weight.mutable_grad().reset();
  });
  EXPECT_GE(store.stats().recomputed.tensors, kAll);
  EXPECT_GT(store.stats().recipe_bytes_peak, Bytes(0));
}

TEST(LeakTest, TensorsThatLeaveToDisk) {
  const Folder folder;
  Options options = spilling(folder);
  options.verify = false;
  options.recompute = false;
  Store store(options);
  const at::Tensor x = leaf();
  expect_flat(store, [&] { pass(store, x); });
  EXPECT_GE(store.stats().spilled.tensors, kAll);
}

}  // namespace
}  // namespace ebbtide::test
