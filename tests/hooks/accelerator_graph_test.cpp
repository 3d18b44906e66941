// What programs do with graphs on accelerators: interleave them, keep them, drop them, break them off; on two devices and
// from two threads.
#include <ebbtide/hooks/checkpoint.h>
#include <ebbtide/store/store_core.h>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/ops/rand.h>
#include <c10/util/Exception.h>
#include <gmock/gmock.h>
#include <tests/hooks/accelerator_support.h>
#include <tests/support/sim_accelerator/sim_guard.h>

#include <array>
#include <stdexcept>
#include <thread>

namespace ebbtide::test {
namespace {

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

/// Which was asked for numbers by the first run, and by nobody else afterwards.
TEST(AcceleratorTest, ARegionRunsAgainWithTheRandomNumbersOfItsDevice) {
  expect_same_as_plain(
      [](SimAccelerator&, Store* store) {
        const at::Generator own = at::make_generator<at::CPUGeneratorImpl>(5);
        const SimGenerator of_the_devices(own);
        const at::Tensor x = device_leaf(1);
        const auto noisy = [&own](const at::Tensor& h) {
          const at::Tensor noise = at::rand(h.sizes(), own, at::TensorOptions(at::kFloat)).to(h.device());
          return (h.sin() * noise).exp() * h.cos();
        };
        const at::Tensor loss = under(store, [&] {
          at::Tensor h = x * 2;
          for (int i = 0; i < 3; ++i) h = store != nullptr ? checkpoint(noisy, h) : noisy(h);
          return h.sum();
        });
        (void)at::rand({4}, own, at::TensorOptions(at::kFloat));
        loss.backward();
        if (store != nullptr) EXPECT_GT(store->stats().recomputed.tensors, 0) << store->report();
        return Tensors{x.grad().cpu(), at::rand({4}, own, at::TensorOptions(at::kFloat))};
      },
      {Bytes(0)});
}

// A gate that is zero at first: a write that torch does not count leaves its zeros as they are, and is seen in later steps.
TEST(AcceleratorTest, OfZerosNoSiteIsJudged) {
  const auto body = [](SimAccelerator&, Store* store) {
    if (store != nullptr) store->core()->follow_plans(false);
    Tensors all;
    for (int step = 0; step < 6; ++step) {
      const at::Tensor x = device_leaf(1), gate = device_leaf(2), z = device_leaf(3);
      const at::Tensor loss = under(store, [&] {
        const at::Tensor y = (x * 2) * (gate * (step < 3 ? 0 : 1));
        y.variable_data().mul_(3);
        return (y * z).sum();
      });
      for (const at::Tensor& grad : torch::autograd::grad({loss}, {x, gate, z}))
        all.push_back(grad.cpu());  // waits: what was compared is known in the next step
    }
    return all;
  };
  expect_same_as_plain(body, {Bytes(0)});
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
    const Count saved = store != nullptr ? store->stats().saved : Count();
    at::Tensor gradient;
    under(store, [&] {
      gradient = gradient_of(loss, x, /*retain_graph=*/true, /*create_graph=*/true);
      return loss;
    });
    if (store != nullptr) EXPECT_GT(store->stats().saved.tensors, saved.tensors) << "on the engine's thread";
    gradient.pow(2).sum().backward();
    return to_cpu({gradient.detach(), x.grad()});
  });
}

TEST(AcceleratorTest, DoubleBackwardThatThrowsHalfWay) {
  expect_same_as_plain(
      [](SimAccelerator&, Store* store) {
        const at::Tensor x = device_leaf(1);
        at::Tensor hidden = x * 2;
        const at::Tensor loss = under(store, [&] { return (hidden.sin() * hidden.tanh()).sum(); });
        hidden.add_(1);  // which the sine has saved
        under(store, [&] {
          EXPECT_THROW(gradient_of(loss, x, /*retain_graph=*/true, /*create_graph=*/true), c10::Error);
          return loss;
        });
        return to_cpu({hidden.detach()});
      },
      {Bytes(0)});
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

}  // namespace
}  // namespace ebbtide::test
