// Accelerators that are full, that refuse, and that are not served.
#include <ebbtide/hooks/accelerators.h>
#include <ebbtide/hooks/scope.h>

#include <c10/util/Exception.h>
#include <gmock/gmock.h>
#include <tests/hooks/accelerator_support.h>
#include <tests/support/late_device.h>
#include <torch/csrc/autograd/custom_function.h>

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace ebbtide::test {
namespace {

using testing::IsEmpty;

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

/// Saves all of its inputs and asks for all of them before it uses any, as the node of a compiled graph does.
struct AsksForAllAtOnce : torch::autograd::Function<AsksForAllAtOnce> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& a, const at::Tensor& b,
                            const at::Tensor& c, const at::Tensor& d, const at::Tensor& e) {
    context->save_for_backward({a, b, c, d, e});
    return a * a + b * b + c * c + d * d + e * e;
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& gradients) {
    torch::autograd::variable_list saved = context->get_saved_variables();
    for (at::Tensor& tensor : saved) tensor = gradients[0] * tensor * 2;
    return saved;
  }
};

// No budget bounds that; so it is counted apart, and the report says whose it was.
TEST(AcceleratorTest, WhatOneNodeAsksForAtOnceIsCountedAndReported) {
  constexpr int64_t kTensors = 5;
  constexpr Bytes kTensor(kFloats * 4);
  const auto step = [&](Store* store) {
    const at::Tensor x = device_leaf(1);
    at::Tensor loss = under(store, [&] { return AsksForAllAtOnce::apply(x * 1, x * 2, x * 3, x * 4, x * 5).sum(); });
    loss.backward();
    return to_cpu({x.grad()});
  };
  Tensors expected;
  {
    const SimAccelerator sim;
    expected = step(nullptr);
  }
  for (uint64_t seed = 0; seed < seeds(4); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Machine machine(to_host(kTensor), {.seed = seed});
    EXPECT_TRUE(same_bits(step(&machine.store()), expected));
    const DeviceStats tier = machine.tier();
    EXPECT_LE(tier.peak_bytes, kTensor * 2);
    EXPECT_GE(tier.peak_bytes + tier.handed_over_peak, kTensor * (kTensors - 1));
    EXPECT_THAT(tier.burst.node, testing::HasSubstr("AsksForAllAtOnce"));
    EXPECT_GE(tier.burst.bytes, kTensor * (kTensors - 1));
    EXPECT_GE(tier.burst.saved, kTensor * kTensors);
    EXPECT_THAT(machine.store().report(), testing::HasSubstr("AsksForAllAtOnce"));
    EXPECT_EQ(tier.handed_over, Bytes(0)) << "the node is done";
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

}  // namespace
}  // namespace ebbtide::test
