// Models on accelerators whose streams run late and interleaved: whatever the budget and the tier, the gradients are
// those of a run without the store, and nothing races.
#include <ebbtide/ebbtide.h>
#include <ebbtide/hooks/accelerators.h>
#include <ebbtide/hooks/scope.h>

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>
#include <gmock/gmock.h>
#include <tests/hooks/models.h>
#include <tests/hooks/support.h>
#include <tests/support/late_device.h>
#include <tests/support/sim_accelerator/sim_accelerator.h>

#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace ebbtide::test {
namespace {

using testing::IsEmpty;
using Tensors = std::vector<at::Tensor>;

constexpr c10::DeviceIndex kDevices = SimAccelerator::kDevices;

c10::Stream default_stream(c10::DeviceIndex index = 0) {
  return c10::Stream(c10::Stream::DEFAULT, SimAccelerator::device(index));
}

/// What follows on `later` comes after what is enqueued on `earlier`.
void order(c10::Stream earlier, c10::Stream later) {
  c10::Event event(c10::DeviceType::PrivateUse1);
  event.record(earlier);
  later.wait(event);
}

/// Two pretend accelerators, and a store that serves their tensors.
class Machine {
 public:
  explicit Machine(const Options& options, SimOptions sim = {}) : sim_(sim), store_(std::in_place, options) {
    store_->on_warning([](const std::string&) {});
    hooks_of(*store_->core())
        ->accelerators.serve(c10::DeviceType::PrivateUse1,
                             [this, seed = sim.seed](c10::DeviceIndex index) -> Result<std::shared_ptr<Device>> {
                               constexpr unsigned kLooksIn100[] = {100, 5, 30};
                               return std::shared_ptr<Device>(
                                   std::make_shared<LateDevice>(sim_.chaos(index), seed, kLooksIn100[seed % 3]));
                             });
  }

  /// REQUIRES: all graphs and all device tensors of the test are gone.
  ~Machine() {
    EXPECT_THAT(sim_.complaints(), IsEmpty());
    expect_all_is_over(*store_);
    store_.reset();
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    const auto allocated = [&] { return sim_.allocated(0) + sim_.allocated(1); };
    while (allocated() > Bytes(0) && std::chrono::steady_clock::now() < deadline) {
      for (c10::DeviceIndex i = 0; i < kDevices; ++i) sim_.chaos(i)->run_all();
      c10::getDeviceAllocator(c10::DeviceType::PrivateUse1)->emptyCache();  // of what recordStream held back
      std::this_thread::yield();
    }
    EXPECT_EQ(allocated(), Bytes(0)) << "device memory outlived the store";
    EXPECT_THAT(sim_.complaints(), IsEmpty());
  }

  SimAccelerator& sim() { return sim_; }
  Store& store() { return *store_; }
  /// Of the first accelerator that was used.
  TierStats tier() const { return store_->stats().devices.at(1); }

 private:
  SimAccelerator sim_;
  std::optional<Store> store_;
};

/// A model and its input on one device; `times` its usual batch.
Subject build_on_device(const std::string& name, int64_t times = 1) {
  Subject model = build(name);
  for (const at::Tensor& parameter : model.module->parameters()) move_in_place(parameter, SimAccelerator::device());
  for (const at::Tensor& buffer : model.module->buffers()) move_in_place(buffer, SimAccelerator::device());
  std::vector<int64_t> repeats(static_cast<size_t>(model.input.dim()), 1);
  repeats[name.starts_with("transformer") ? 1 : 0] = times;
  model.input = model.input.repeat(repeats).to(SimAccelerator::device());
  return model;
}

Tensors to_cpu(const Tensors& tensors) {
  Tensors on_cpu;
  for (const at::Tensor& tensor : tensors) on_cpu.push_back(tensor.cpu());
  return on_cpu;
}

/// Losses, gradients and buffers of a few steps of SGD, the forward under the store if there is one. Nothing makes the
/// host wait before the end.
Tensors train(const std::string& name, Store* store, int64_t times = 1, int steps = 2) {
  const Subject model = build_on_device(name, times);
  if (store != nullptr) store->attach(*model.module);
  torch::manual_seed(2);
  Tensors seen;
  for (int step = 0; step < steps; ++step) {
    model.module->zero_grad();
    at::Tensor loss;
    {
      std::optional<OffloadScope> scope;
      if (store != nullptr) scope.emplace(*store);
      loss = model.forward(model.input).pow(2).mean();
    }
    loss.backward();
    seen.push_back(loss.detach());
    const torch::NoGradGuard no_grad;
    for (const at::Tensor& parameter : model.module->parameters()) {
      seen.push_back(parameter.grad().clone());
      parameter.sub_(parameter.grad(), 0.01);
    }
  }
  for (const at::Tensor& buffer : model.module->buffers()) seen.push_back(buffer.clone());
  return to_cpu(seen);
}

/// The same of a run without a store, on an accelerator.
const Tensors& plain(const std::string& name, int64_t times = 1) {
  static std::map<std::pair<std::string, int64_t>, Tensors> known;
  const auto [it, first] = known.try_emplace({name, times});
  if (first) {
    const SimAccelerator sim;
    it->second = train(name, nullptr, times);
    EXPECT_THAT(sim.complaints(), IsEmpty());
  }
  return it->second;
}

/// How many seeds a test tries; EBBTIDE_SEEDS asks for more.
uint64_t seeds(uint64_t usual) {
  const char* asked = std::getenv("EBBTIDE_SEEDS");
  return asked != nullptr ? std::strtoull(asked, nullptr, 10) : usual;
}

/// What is over the budget goes to host memory, and no further.
Options to_host(Bytes device_budget) {
  Options options = keeping(device_budget);
  options.host_budget = MiB(32);
  return options;
}

/// Host memory holds little, so most goes on to disk.
Options to_disk(const Folder& folder, Bytes device_budget) {
  Options options = keeping(device_budget);
  options.spill_to = {folder.path()};
  options.host_budget = MiB(2);
  return options;
}

/// The largest tensor that one of the models saves, at its usual batch.
Bytes largest_saved(const std::string& name) {
  if (name == "conv") return Bytes(8 * 16 * 24 * 24 * 4);
  if (name == "transformer") return Bytes(32 * 4 * 256 * 4);
  return Bytes(64 * 256 * 4);
}

/// How many times its usual batch it takes to save several MiB, and no tensor of more than 2.
int64_t times_for_disk(const std::string& name) {
  if (name == "conv") return 4;
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
  for (const int percent : {0, 10, 50}) {
    for (uint64_t seed = 0; seed < seeds(4); ++seed) {
      SCOPED_TRACE(std::to_string(percent) + "%, seed " + std::to_string(seed));
      const Bytes budget(saved.count() * percent / 100);
      Machine machine(to_host(budget), {.seed = seed});
      EXPECT_TRUE(same_bits(train(name, &machine.store()), expected));
      const Stats stats = machine.store().stats();
      EXPECT_EQ(stats.passes, 2);
      EXPECT_GT(stats.offloaded.tensors, 0);
      EXPECT_EQ(stats.spilled.tensors, 0);
      EXPECT_LE(machine.tier().peak_bytes, budget + largest_saved(name));
    }
  }
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

at::Tensor device_leaf(int seed = 0, c10::DeviceIndex index = 0) {
  return leaf(seed).detach().to(SimAccelerator::device(index)).requires_grad_(true);
}

/// Runs `body` without a store, then with one on each of a few seeds and budgets, and compares what it returns.
void expect_same_as_plain(const std::function<Tensors(SimAccelerator&, Store*)>& body,
                          const std::vector<Bytes>& budgets = {Bytes(0), KiB(40)}) {
  Tensors expected;
  {
    SimAccelerator sim;
    expected = body(sim, nullptr);
    EXPECT_THAT(sim.complaints(), IsEmpty()) << "the program itself is wrong";
  }
  for (const Bytes budget : budgets) {
    for (uint64_t seed = 0; seed < seeds(12); ++seed) {
      SCOPED_TRACE(to_string(budget) + ", seed " + std::to_string(seed));
      Machine machine(to_host(budget), {.seed = seed});
      EXPECT_TRUE(same_bits(body(machine.sim(), &machine.store()), expected));
      EXPECT_GT(machine.store().stats().offloaded.tensors, 0);
      if (testing::Test::HasFailure()) return;
    }
  }
}

/// The loss of `forward`, under the store if there is one.
at::Tensor under(Store* store, const std::function<at::Tensor()>& forward) {
  std::optional<OffloadScope> scope;
  if (store != nullptr) scope.emplace(*store);
  return forward();
}

TEST(AcceleratorTest, TwoMicroBatchesInterleaved) {
  expect_same_as_plain([](SimAccelerator&, Store* store) {
    const at::Tensor weight = device_leaf(7);
    const at::Tensor x = device_leaf(1), y = device_leaf(2), z = device_leaf(3);
    const at::Tensor first = under(store, [&] { return chain(x * weight); });
    at::Tensor second = under(store, [&] { return chain(y * weight); });
    first.backward();
    const at::Tensor third = under(store, [&] { return chain(z * weight); });
    third.backward();
    second.backward();
    return to_cpu({weight.grad(), x.grad(), y.grad(), z.grad()});
  });
}

TEST(AcceleratorTest, GraphDroppedUnused) {
  expect_same_as_plain([](SimAccelerator&, Store* store) {
    const at::Tensor x = device_leaf(1);
    at::Tensor unused = under(store, [&] { return chain(x * 3); });
    const at::Tensor used = under(store, [&] { return chain(x * 2); });
    unused = at::Tensor();
    // Its memory is taken at once.
    const at::Tensor other = under(store, [&] { return chain(x * 4); });
    used.backward();
    return to_cpu({x.grad(), other.detach()});
  });
}

TEST(AcceleratorTest, GraphDroppedInTheMiddleOfItsBackward) {
  expect_same_as_plain([](SimAccelerator&, Store* store) {
    const at::Tensor x = device_leaf(1), y = device_leaf(2);
    at::Tensor hidden;
    at::Tensor loss = under(store, [&] {
      hidden = (x * y).sin() * x;
      return chain(hidden);
    });
    Tensors seen = torch::autograd::grad({loss}, {hidden});  // fetches ahead what nobody will ask for
    loss = hidden = at::Tensor();
    const at::Tensor again = under(store, [&] { return chain(x * y); });
    again.backward();
    seen.push_back(x.grad());
    return to_cpu(seen);
  });
}

TEST(AcceleratorTest, TensorOfASideStreamSavedOnTheMainOne) {
  expect_same_as_plain([](SimAccelerator& sim, Store* store) {
    const c10::Stream side = sim.side_stream();
    const at::Tensor weight = device_leaf(3);
    order(default_stream(), side);
    at::Tensor loss = under(store, [&] {
      at::Tensor loaded, computed;
      {
        const c10::StreamGuard guard(side);
        loaded = leaf(1).detach().to(SimAccelerator::device());
        computed = (weight * 2).exp();
      }
      order(side, default_stream());
      // As torch asks of whoever uses a tensor on another stream than it was allocated on.
      loaded.record_stream(default_stream());
      computed.record_stream(default_stream());
      return chain(weight * loaded) + (computed * loaded * computed).sum();
    });
    {
      const c10::StreamGuard guard(side);  // would be given the memory of what has left
      for (int i = 0; i < 4; ++i) at::zeros({kFloats}, weight.options().requires_grad(false));
    }
    loss.backward();
    return to_cpu({weight.grad()});
  });
}

TEST(AcceleratorTest, StreamSwitchedBetweenForwardAndBackward) {
  expect_same_as_plain([](SimAccelerator& sim, Store* store) {
    const c10::Stream side = sim.side_stream(), third = sim.side_stream();
    const at::Tensor x = device_leaf(1);
    at::Tensor hidden, loss;
    under(store, [&] {
      hidden = (x * 2).sin().exp();
      order(default_stream(), side);
      const c10::StreamGuard guard(side);
      hidden.record_stream(side);
      x.record_stream(side);
      loss = chain(hidden * x);
      return loss;
    });
    order(side, third);
    loss.record_stream(third);
    {
      const c10::StreamGuard guard(third);
      loss.backward();
    }
    order(third, default_stream());
    return to_cpu({x.grad()});
  });
}

TEST(AcceleratorTest, TensorSavedOnTwoStreams) {
  expect_same_as_plain([](SimAccelerator& sim, Store* store) {
    const c10::Stream side = sim.side_stream();
    const at::Tensor x = device_leaf(1);
    at::Tensor on_main, on_side;
    under(store, [&] {
      const at::Tensor shared = (x * 2).sin();
      order(default_stream(), side);
      shared.record_stream(side);
      on_main = (shared * shared.detach().clone()).exp().sum();
      const c10::StreamGuard guard(side);
      on_side = (shared * shared).cos().sum();
      return on_side;
    });
    Tensors seen = torch::autograd::grad({on_side}, {x}, {}, /*retain_graph=*/true);
    seen.push_back(torch::autograd::grad({on_main}, {x}, {}, /*retain_graph=*/true).front());
    seen.push_back(torch::autograd::grad({on_side}, {x}).front());
    order(side, default_stream());
    return to_cpu(seen);
  });
}

TEST(AcceleratorTest, RetainedGraph) {
  expect_same_as_plain([](SimAccelerator&, Store* store) {
    const at::Tensor x = device_leaf(1);
    const at::Tensor loss = under(store, [&] { return chain(x * 2); });
    Tensors seen;
    for (const bool retain : {true, true, false}) seen.push_back(gradient_of(loss, x, retain));
    return to_cpu(seen);
  });
}

TEST(AcceleratorTest, DoubleBackward) {
  expect_same_as_plain([](SimAccelerator&, Store* store) {
    const at::Tensor x = device_leaf(1);
    const at::Tensor loss = under(store, [&] { return chain(x * 2); });
    at::Tensor gradient;
    under(store, [&] {
      gradient = gradient_of(loss, x, /*retain_graph=*/true, /*create_graph=*/true);
      return loss;
    });
    gradient.pow(2).sum().backward();
    return to_cpu({gradient.detach(), x.grad()});
  });
}

TEST(AcceleratorTest, TwoDevicesInOneModel) {
  expect_same_as_plain(
      [](SimAccelerator&, Store* store) {
        const at::Tensor x = device_leaf(1, 0), y = device_leaf(2, 1);
        const at::Tensor loss = under(store, [&] {
          const at::Tensor hidden = (x * 2).sin().exp();
          const at::Tensor moved = hidden.to(SimAccelerator::device(1));
          const at::Tensor deeper = (moved * y).cos() * y;
          return chain(deeper.to(SimAccelerator::device(0)) * hidden);
        });
        loss.backward();
        if (store != nullptr) {
          const Stats stats = store->stats();
          EXPECT_EQ(stats.devices.size(), 3);
          for (const size_t i : {1, 2}) EXPECT_GT(stats.devices.at(i).peak_bytes, Bytes(0));
        }
        return to_cpu({x.grad(), y.grad()});
      },
      {Bytes(0), KiB(20)});
}

TEST(AcceleratorTest, CpuAndAcceleratorInOneModel) {
  expect_same_as_plain(
      [](SimAccelerator&, Store* store) {
        const at::Tensor x = leaf(1), y = device_leaf(2);
        const at::Tensor loss = under(store, [&] {
          const at::Tensor hidden = (x * 2).sin().exp() * x;
          return chain(hidden.to(SimAccelerator::device()) * y);
        });
        loss.backward();
        return to_cpu({x.grad(), y.grad()});
      },
      {KiB(40)});
}

TEST(AcceleratorTest, InPlaceWriteAfterSavingIsTorchsError) {
  for (const Bytes budget : {Bytes(0), GiB(1)}) {
    Machine machine(to_host(budget));
    const at::Tensor x = device_leaf(1);
    at::Tensor hidden;
    const at::Tensor loss = under(&machine.store(), [&] {
      hidden = (x * 2).exp();
      return chain(hidden);
    });
    hidden.detach().add_(1);
    try {
      loss.backward();
      ADD_FAILURE() << "no error";
    } catch (const c10::Error& error) {
      EXPECT_THAT(error.what(), testing::HasSubstr("modified by an inplace operation"));
      EXPECT_THAT(error.what(), testing::HasSubstr("is at version 1; expected version 0 instead"));
    }
  }
}

// What the lead of a large run wants: a model that does not fit, fits.
TEST(AcceleratorTest, WhatRunsOutOfMemoryPlainTrainsWithTheStore) {
  const auto forward = [](const at::Tensor& x) {
    at::Tensor h = x;
    for (int i = 0; i < 24; ++i) h = (h * 1.01).sin();
    return h.sum();
  };
  Bytes plain_peak;
  Tensors expected;
  {
    const SimAccelerator sim;
    const at::Tensor x = device_leaf(1);
    forward(x).backward();
    expected = to_cpu({x.grad()});
    plain_peak = sim.peak();
  }
  const Bytes cap(plain_peak.count() / 2);
  {
    const SimAccelerator sim({.capacity = cap});
    const at::Tensor x = device_leaf(1);
    EXPECT_THROW(forward(x).backward(), c10::OutOfMemoryError);
  }
  for (uint64_t seed = 0; seed < seeds(12); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Machine machine(to_host(KiB(48)), {.seed = seed, .capacity = cap});
    const at::Tensor x = device_leaf(1);
    const at::Tensor loss = under(&machine.store(), [&] { return forward(x); });
    ASSERT_NO_THROW(loss.backward());
    EXPECT_TRUE(same_bits(to_cpu({x.grad()}), expected));
    EXPECT_LE(machine.sim().peak(), cap);
  }
}

}  // namespace
}  // namespace ebbtide::test
