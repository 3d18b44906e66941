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
#include <tests/support/mutant_device.h>
#include <tests/support/sim_accelerator/sim_accelerator.h>

#include <array>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
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
  explicit Machine(const Options& options, SimOptions sim = {},
                   MutantDevice::Mutation mutation = MutantDevice::Mutation::kNone)
      : sim_(sim), mutant_(mutation != MutantDevice::Mutation::kNone), store_(std::in_place, options) {
    store_->on_warning([](const std::string&) {});
    hooks_of(*store_->core())
        ->accelerators.serve(c10::DeviceType::PrivateUse1, [this, seed = sim.seed, mutation](c10::DeviceIndex index) {
          constexpr unsigned kLooksIn100[] = {100, 5, 30};
          auto late = std::make_shared<LateDevice>(sim_.chaos(index), seed, kLooksIn100[seed % 3]);
          return Result(std::shared_ptr<Device>(std::make_shared<MutantDevice>(std::move(late), mutation)));
        });
  }

  /// REQUIRES: all graphs and all device tensors of the test are gone.
  ~Machine() {
    if (!mutant_) EXPECT_THAT(sim_.complaints(), IsEmpty());
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
    if (!mutant_) EXPECT_THAT(sim_.complaints(), IsEmpty());
  }

  SimAccelerator& sim() { return sim_; }
  Store& store() { return *store_; }
  /// Of the first accelerator that was used.
  TierStats tier() const { return store_->stats().devices.at(1); }

 private:
  SimAccelerator sim_;
  const bool mutant_;
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

bool is_long() {
  return std::getenv("EBBTIDE_LONG") != nullptr;
}

/// How many seeds a test tries.
uint64_t seeds(uint64_t usual) {
  return is_long() ? 10 * usual : usual;
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

// Torch need not be told of the main stream: the graph keeps the tensor until the side stream comes after its last use.
// The store lets go of it long before.
TEST(AcceleratorTest, TensorOfASideStreamThatTheGraphKeeps) {
  expect_same_as_plain(
      [](SimAccelerator& sim, Store* store) {
        const c10::Stream side = sim.side_stream();
        const at::Tensor weight = device_leaf(3);
        const auto on_side = [&](const std::function<void()>& body) {
          const c10::StreamGuard guard(side);
          body();
        };
        order(default_stream(), side);
        at::Tensor loss = under(store, [&] {
          at::Tensor loaded;
          on_side([&] { loaded = leaf(1).detach().to(SimAccelerator::device()); });
          order(side, default_stream());
          return (weight * loaded).sum();
        });
        // Would be given its memory.
        on_side([&] { at::zeros({kFloats}, weight.options().requires_grad(false)); });
        const at::Tensor gradient = gradient_of(loss, weight, /*retain_graph=*/true);
        order(default_stream(), side);
        loss = at::Tensor();
        return to_cpu({gradient});
      },
      {Bytes(0)});
}

// As above, and the tensor's node is one of the main stream, so that nothing but its memory is of the side stream.
TEST(AcceleratorTest, TensorOfASideStreamWrittenOnTheMainOne) {
  expect_same_as_plain(
      [](SimAccelerator& sim, Store* store) {
        const c10::Stream side = sim.side_stream();
        const at::Tensor weight = device_leaf(3);
        const auto zeros = [&] { return at::zeros({kFloats}, weight.options().requires_grad(false)); };
        order(default_stream(), side);
        at::Tensor loss = under(store, [&] {
          at::Tensor written;
          {
            const c10::StreamGuard guard(side);
            written = zeros();
          }
          order(side, default_stream());
          written.add_(weight);
          return (written * written).sum();
        });
        {
          const c10::StreamGuard guard(side);
          zeros();
        }
        const at::Tensor gradient = gradient_of(loss, weight, /*retain_graph=*/true);
        order(default_stream(), side);
        loss = at::Tensor();
        return to_cpu({gradient});
      },
      {Bytes(0)});
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

/// Reads what it saved on a stream of its own choice.
struct ReadsElsewhere : torch::autograd::Function<ReadsElsewhere> {
  static inline std::optional<c10::Stream> where;
  static inline at::Tensor seen;

  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x) {
    context->save_for_backward({x});
    return x * 2;
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& gradients) {
    order(default_stream(), *where);
    {
      const c10::StreamGuard guard(*where);
      seen = context->get_saved_variables()[0] * 3;
    }
    return {gradients[0] * 2};
  }
};

// The graph keeps what it saved until the main stream comes after the other's read.
TEST(AcceleratorTest, SavedTensorReadOnAnotherStream) {
  expect_same_as_plain(
      [](SimAccelerator& sim, Store* store) {
        const c10::Stream side = sim.side_stream();
        ReadsElsewhere::where = side;
        const at::Tensor x = device_leaf(1);
        at::Tensor loss = under(store, [&] {
          const at::Tensor hidden = x * 5;
          return ReadsElsewhere::apply(hidden).sum();
        });
        Tensors seen = {gradient_of(loss, x, /*retain_graph=*/true)};
        seen.push_back(under(store, [&] { return chain(x * 3); }).detach());  // makes room, and takes it
        order(side, default_stream());
        seen.push_back(std::exchange(ReadsElsewhere::seen, at::Tensor()));
        seen.back().record_stream(default_stream());
        loss = at::Tensor();
        return to_cpu(seen);
      },
      {Bytes(0), KiB(20), KiB(40)});
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

TEST(AcceleratorTest, TwoThreadsTrainOnOneDeviceAndOneStore) {
  const auto one = [](Store* store, int seed) {
    const at::Tensor weight = device_leaf(seed), x = device_leaf(seed + 10);
    for (int step = 0; step < 3; ++step) under(store, [&] { return chain(x * weight); }).backward();
    return to_cpu({weight.grad(), x.grad()});
  };
  const auto both = [&](Store* store) {
    std::array<Tensors, 2> seen;
    std::thread other([&] {
      at::set_num_threads(1);
      seen[1] = one(store, 1);
    });
    seen[0] = one(store, 0);
    other.join();
    return seen;
  };
  std::array<Tensors, 2> expected;
  {
    const SimAccelerator sim;
    expected = {one(nullptr, 0), one(nullptr, 1)};
  }
  for (uint64_t seed = 0; seed < seeds(12); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Machine machine(to_host(Bytes(0)), {.seed = seed});
    const auto seen = both(&machine.store());
    for (const size_t i : {0, 1}) EXPECT_TRUE(same_bits(seen[i], expected[i]));
  }
}

TEST(AcceleratorTest, BackwardThatThrowsLeavesNothingBehind) {
  for (uint64_t seed = 0; seed < seeds(12); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Machine machine(to_host(Bytes(0)), {.seed = seed});
    const at::Tensor x = device_leaf(1);
    at::Tensor hidden;
    at::Tensor loss = under(&machine.store(), [&] {
      hidden = (x * 2).sin().exp();
      return chain(hidden.cos());
    });
    hidden.register_hook([](const at::Tensor&) -> at::Tensor { throw std::runtime_error("the user's"); });
    EXPECT_THROW(loss.backward(), std::runtime_error);
    const at::Tensor again = under(&machine.store(), [&] { return chain(x * 3); });
    again.backward();
  }
}

// A tensor that cannot leave stays; one that cannot come back is an error.
TEST(AcceleratorTest, RefusedCopiesAndRegistrationsChangeNoBit) {
  using Call = ChaosDevice::Call;
  Tensors expected;
  const auto body = [](Store* store) {
    const at::Tensor x = device_leaf(1), weight = device_leaf(2);
    under(store, [&] { return chain(x * weight); }).backward();
    return to_cpu({x.grad(), weight.grad()});
  };
  {
    const SimAccelerator sim;
    expected = body(nullptr);
  }
  int unharmed = 0;
  for (const auto& [call, code] :
       {std::pair(Call::kCopy, FailureCode::kInvalid), std::pair(Call::kRegisterHost, FailureCode::kUnsupported)}) {
    for (int skip = 0; skip < 8; ++skip) {
      SCOPED_TRACE("call " + std::to_string(static_cast<int>(call)) + ", the " + std::to_string(skip) + "th");
      Machine machine(to_host(Bytes(0)), {.seed = static_cast<uint64_t>(skip)});
      machine.sim().chaos()->fail(call, skip, Failure{code, 0, "The pretend device refuses."});
      try {
        EXPECT_TRUE(same_bits(body(&machine.store()), expected));
        ++unharmed;
      } catch (const Error& error) {
        EXPECT_THAT(error.what(), testing::HasSubstr("The pretend device refuses."));
        EXPECT_EQ(call, Call::kCopy);
      }
    }
  }
  EXPECT_GE(unharmed, 12) << "of 16: those whose failure came while tensors left";
}

/// Under a capture all the time.
class CapturingDevice final : public LateDevice {
 public:
  using LateDevice::LateDevice;
  Result<bool> capturing(StreamId) override { return true; }
};

TEST(AcceleratorTest, WhatIsNotServedStaysWithItsReason) {
  SimAccelerator sim;
  const std::map<std::string, std::optional<OpenDevice>> openers = {
      {"on a device that is not served", std::nullopt},
      {"on a device that could not be opened",
       [](c10::DeviceIndex) {
         return Result<std::shared_ptr<Device>>(Failure{FailureCode::kUnsupported, 0, "The driver is too old."});
       }},
      {"inside a graph capture",
       [&](c10::DeviceIndex index) {
         return Result<std::shared_ptr<Device>>(std::make_shared<CapturingDevice>(sim.chaos(index), 0, 100));
       }},
  };
  Tensors expected;
  for (const auto& [reason, open] : openers) {
    SCOPED_TRACE(reason);
    Store store(to_host(Bytes(0)));
    std::vector<std::string> warnings;
    store.on_warning([&](const std::string& text) { warnings.push_back(text); });
    if (open) hooks_of(*store.core())->accelerators.serve(c10::DeviceType::PrivateUse1, *open);
    Tensors seen;
    {
      const at::Tensor x = device_leaf(1);
      under(&store, [&] { return chain(x * 2); }).backward();
      const int64_t passed_through = store.stats().passed_through.tensors;
      EXPECT_GT(passed_through, 0);
      EXPECT_EQ(store.stats().saved.tensors, 0);
      EXPECT_EQ(store.stats().passed_through_reasons.at(reason).tensors, passed_through);
      seen = to_cpu({x.grad()});
    }
    if (expected.empty()) expected = seen;
    EXPECT_TRUE(same_bits(seen, expected));
    // The next call that may warn does: a pack of what does move.
    {
      const at::Tensor x = leaf(1);
      under(&store, [&] { return chain(x * 2); });
    }
    if (reason == "on a device that could not be opened")
      EXPECT_THAT(warnings, testing::ElementsAre(testing::HasSubstr("The driver is too old.")));
    else
      EXPECT_THAT(warnings, IsEmpty());
  }
  EXPECT_THAT(sim.complaints(), IsEmpty());
}

// What the library is for.
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

// As many as time allows; --long tries them all.
TEST(AcceleratorSweep, SmallTransformersInAnySchedule) {
  constexpr uint64_t kSeeds = 1000;
  constexpr std::chrono::seconds kTime{20};
  const std::string name = "transformer";
  const Tensors& expected = plain(name);
  const Folder folder;
  const auto begin = std::chrono::steady_clock::now();
  uint64_t seed = 0;
  for (; seed < kSeeds && (is_long() || std::chrono::steady_clock::now() < begin + kTime); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    const Bytes budget = KiB(static_cast<int64_t>(seed * 37 % 600));
    Machine machine(seed % 2 == 0 ? to_host(budget) : to_disk(folder, budget), {.seed = seed});
    ASSERT_TRUE(same_bits(train(name, &machine.store()), expected));
    if (seed % 2 == 0) ASSERT_LE(machine.tier().peak_bytes, budget + largest_saved(name));
  }
  std::cout << "seeds reached: " << seed << " of " << kSeeds << "\n";
  RecordProperty("seeds", std::to_string(seed));
}

/// Orders that the store makes, each left out: the race detector must see it in every schedule.
class AcceleratorMutantTest : public testing::TestWithParam<MutantDevice::Mutation> {};

TEST_P(AcceleratorMutantTest, IsCaughtInEverySchedule) {
  for (uint64_t seed = 0; seed < seeds(20); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Machine machine(to_host(Bytes(0)), {.seed = seed}, GetParam());
    (void)train("transformer", &machine.store());
    EXPECT_THAT(machine.sim().complaints(), testing::Contains(testing::HasSubstr("race: ")));
  }
}

const char* name_of(MutantDevice::Mutation mutation) {
  switch (mutation) {
    case MutantDevice::Mutation::kNone:
      return "None";
    case MutantDevice::Mutation::kComputeDoesNotWait:
      return "ComputeDoesNotWait";
    case MutantDevice::Mutation::kCopyOutDoesNotWait:
      return "CopyOutDoesNotWait";
    case MutantDevice::Mutation::kCopyInDoesNotWait:
      return "CopyInDoesNotWait";
    case MutantDevice::Mutation::kPassedTooEarly:
      return "PassedTooEarly";
  }
  return "";
}

INSTANTIATE_TEST_SUITE_P(Orders, AcceleratorMutantTest,
                         testing::Values(MutantDevice::Mutation::kComputeDoesNotWait,
                                         MutantDevice::Mutation::kCopyOutDoesNotWait,
                                         MutantDevice::Mutation::kCopyInDoesNotWait,
                                         MutantDevice::Mutation::kPassedTooEarly),
                         [](const auto& info) { return std::string(name_of(info.param)); });

}  // namespace
}  // namespace ebbtide::test
