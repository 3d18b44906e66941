// The pretend accelerators compute what the CPU computes, and see what a GPU would not forgive.
#include "tests/support/sim_accelerator/sim_accelerator.h"

#include <ATen/ATen.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>
#include <gmock/gmock.h>
#include <torch/optim/adamw.h>
#include <torch/optim/sgd.h>

#include <functional>
#include <map>
#include <set>
#include <thread>

#include "tests/hooks/models.h"
#include "tests/hooks/support.h"

namespace ebbtide::test {
namespace {

using testing::Contains;
using testing::HasSubstr;
using testing::IsEmpty;

at::Tensor on_sim(const at::Tensor& tensor, c10::DeviceIndex index = 0) {
  return tensor.to(SimAccelerator::device(index));
}

bool same_as_cpu(const at::Tensor& on_device, const at::Tensor& on_cpu) {
  return same_bits(on_device.cpu(), on_cpu);
}

void move_in_place(const nn::Module& module, c10::Device device) {
  for (const at::Tensor& parameter : module.parameters()) test::move_in_place(parameter, device);
  for (const at::Tensor& buffer : module.buffers()) test::move_in_place(buffer, device);
}

const std::map<std::string, std::function<at::Tensor(const at::Tensor&)>>& operators() {
  using at::Tensor;
  static const std::map<std::string, std::function<Tensor(const Tensor&)>> all = {
      {"arithmetic", [](const Tensor& x) { return (x * 2 + 1) / (x.abs() + 0.5) - x.pow(2); }},
      {"matmul", [](const Tensor& x) { return x.matmul(x.t()).softmax(-1); }},
      {"bmm",
       [](const Tensor& x) {
         return at::bmm(x.view({2, 4, 8}), x.view({2, 8, 4}).contiguous());
       }},
      {"views",
       [](const Tensor& x) {
         return x.view({4, 2, 8}).transpose(0, 1).slice(2, 1, 7).contiguous();
       }},
      {"unfold", [](const Tensor& x) { return x.unfold(1, 3, 2) + 1; }},
      {"expand",
       [](const Tensor& x) {
         return x.select(0, 3).expand({5, 8}) * 2;
       }},
      {"cat",
       [](const Tensor& x) {
         return at::cat({x, x * 2}, 1);
       }},
      {"split", [](const Tensor& x) { return at::stack(x.split(2)).sum(0); }},
      {"where", [](const Tensor& x) { return at::where(x > 0, x, -x); }},
      {"masked_fill", [](const Tensor& x) { return x.masked_fill(x > 0, 7); }},
      {"masked_select", [](const Tensor& x) { return x.masked_select(x > 0); }},
      {"nonzero", [](const Tensor& x) { return (x > 0).nonzero(); }},
      {"index", [](const Tensor& x) { return x.index({at::arange(3, x.options().dtype(at::kLong))}); }},
      {"index_put", [](const Tensor& x) { return x.clone().index_put_({x > 0}, x.new_zeros({})); }},
      {"embedding",
       [](const Tensor& x) { return at::embedding(x, at::arange(5, x.options().dtype(at::kLong)).flip(0)); }},
      {"topk", [](const Tensor& x) { return std::get<0>(x.topk(3)); }},
      {"sort", [](const Tensor& x) { return std::get<1>(x.sort()); }},
      {"cumsum", [](const Tensor& x) { return x.cumsum(0); }},
      {"reductions", [](const Tensor& x) { return x.sum() + x.mean() + x.amax() + x.std() + x.norm(); }},
      {"layer_norm", [](const Tensor& x) { return at::layer_norm(x, {8}); }},
      {"cross_entropy",
       [](const Tensor& x) { return at::cross_entropy_loss(x, at::arange(8, x.options().dtype(at::kLong))); }},
      {"in place", [](const Tensor& x) { return x.clone().add_(1).mul_(x).clamp_(-1, 1).neg_(); }},
      {"out=",
       [](const Tensor& x) {
         Tensor out = at::empty({0}, x.options());
         at::add_out(out, x, x);
         return out;
       }},
      {"resize_",
       [](const Tensor& x) {
         return x.clone().resize_({12, 8}).slice(0, 0, 8).clone();
       }},
      {"set_",
       [](const Tensor& x) {
         return at::empty({0}, x.options()).set_(x.storage(), 3, {4, 2}, {8, 1}) + 1;
       }},
      {"dtypes", [](const Tensor& x) { return x.to(at::kHalf).to(at::kDouble).to(at::kInt) * 3; }},
      {"complex", [](const Tensor& x) { return at::view_as_real(at::complex(x, -x).conj() * at::complex(x, x)); }},
      {"item", [](const Tensor& x) { return x * x[0][0].item<float>(); }},
      {"random",
       [](const Tensor& x) { return at::empty_like(x).uniform_() + at::randn_like(x) + at::bernoulli(x.sigmoid()); }},
      {"copy_",
       [](const Tensor& x) {
         return at::zeros({8, 8}, x.options().dtype(at::kDouble)).copy_(x.t());
       }},
      {"broadcast copy_",
       [](const Tensor& x) {
         return at::zeros({8, 8}, x.options()).copy_(x[2]);
       }},
      {"number tensors", [](const Tensor& x) { return x + at::scalar_tensor(0.1, at::kDouble); }},
  };
  return all;
}

TEST(SimAcceleratorTest, OperatorsGiveTheCpusBits) {
  for (const uint64_t seed : {0, 1, 2, 3}) {
    const SimAccelerator sim({.seed = seed});
    for (const auto& [name, operation] : operators()) {
      torch::manual_seed(3);
      const at::Tensor x = at::randn({8, 8});
      torch::manual_seed(4);
      const at::Tensor expected = operation(x);
      torch::manual_seed(4);
      const at::Tensor got = operation(on_sim(x));
      EXPECT_EQ(got.device(), SimAccelerator::device()) << name;
      EXPECT_EQ(got.strides(), expected.strides()) << name;
      EXPECT_TRUE(same_as_cpu(got, expected)) << name << ", seed " << seed;
    }
    EXPECT_THAT(sim.complaints(), IsEmpty()) << "seed " << seed;
  }
}

/// Parameters, gradients and buffers after a few steps.
std::vector<at::Tensor> train(const std::string& name, std::optional<c10::Device> device, bool adam) {
  const Subject model = build(name);
  at::Tensor input = model.input;
  if (device) {
    move_in_place(*model.module, *device);
    input = input.to(*device);
  }
  std::unique_ptr<torch::optim::Optimizer> optimizer;
  if (adam)
    optimizer = std::make_unique<torch::optim::AdamW>(model.module->parameters(), torch::optim::AdamWOptions(0.01));
  else
    optimizer =
        std::make_unique<torch::optim::SGD>(model.module->parameters(), torch::optim::SGDOptions(0.01).momentum(0.9));
  torch::manual_seed(2);
  for (int step = 0; step < 3; ++step) {
    optimizer->zero_grad();
    model.forward(input).pow(2).mean().backward();
    optimizer->step();
  }
  std::vector<at::Tensor> seen;
  for (const at::Tensor& parameter : model.module->parameters()) {
    seen.push_back(parameter.detach().cpu());
    seen.push_back(parameter.grad().cpu());
  }
  for (const at::Tensor& buffer : model.module->buffers()) seen.push_back(buffer.cpu());
  return seen;
}

class SimTrainingTest : public testing::TestWithParam<const char*> {};

TEST_P(SimTrainingTest, StepsGiveTheCpusBits) {
  for (const bool adam : {false, true}) {
    const std::vector<at::Tensor> expected = train(GetParam(), std::nullopt, adam);
    for (const uint64_t seed : {1, 2, 3}) {
      const SimAccelerator sim({.seed = seed});
      EXPECT_TRUE(same_bits(train(GetParam(), SimAccelerator::device(), adam), expected)) << "seed " << seed;
      EXPECT_THAT(sim.complaints(), IsEmpty()) << "seed " << seed;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Models, SimTrainingTest,
                         testing::Values("mlp", "conv", "transformer_without_dropout", "custom_function"),
                         [](const auto& info) { return std::string(info.param); });

// Torch takes other routes through an LSTM and a dropout on an accelerator, which round otherwise.
TEST(SimAcceleratorTest, LstmAndDropoutAgreeWithThemselvesAndNearlyWithTheCpu) {
  for (const char* name : {"lstm", "transformer"}) {
    const std::vector<at::Tensor> on_cpu = train(name, std::nullopt, /*adam=*/false);
    std::vector<at::Tensor> first;
    for (const uint64_t seed : {1, 2, 3}) {
      const SimAccelerator sim({.seed = seed});
      const std::vector<at::Tensor> got = train(name, SimAccelerator::device(), /*adam=*/false);
      if (first.empty()) first = got;
      EXPECT_TRUE(same_bits(got, first)) << name << ", seed " << seed;
      EXPECT_THAT(sim.complaints(), IsEmpty()) << name << ", seed " << seed;
    }
    ASSERT_EQ(first.size(), on_cpu.size());
    for (size_t i = 0; i < first.size(); ++i) EXPECT_TRUE(at::allclose(first[i], on_cpu[i], 1e-3, 1e-5)) << name;
  }
}

TEST(SimAcceleratorTest, NothingIsComputedBeforeItMust) {
  const SimAccelerator sim({.pace = Pace::kLazy});
  const at::Tensor x = on_sim(at::ones({4}));
  const at::Tensor y = x + 1;
  EXPECT_TRUE(std::isnan(*static_cast<const float*>(y.const_data_ptr()))) << "still what the memory was poisoned with";
  EXPECT_FALSE(c10::impl::getDeviceGuardImpl(at::kPrivateUse1)
                   ->queryStream(c10::Stream(c10::Stream::DEFAULT, SimAccelerator::device())));
  EXPECT_TRUE(same_as_cpu(y, at::full({4}, 2.F)));
}

TEST(SimAcceleratorTest, OverTheCapIsOutOfMemory) {
  const SimAccelerator sim({.capacity = KiB(64)});
  const auto options = at::TensorOptions(SimAccelerator::device()).dtype(at::kByte);
  const at::Tensor half = at::empty({32 << 10}, options);
  EXPECT_THROW(at::empty({33 << 10}, options), c10::OutOfMemoryError);
  EXPECT_EQ(sim.allocated(), KiB(32));
  EXPECT_NO_THROW(at::empty({32 << 10}, options));
  EXPECT_EQ(sim.peak(), KiB(64));
  EXPECT_NO_THROW(at::empty({64 << 10}, options.device(SimAccelerator::device(1)))) << "each device has its own";
  EXPECT_THAT(sim.complaints(), IsEmpty());
}

TEST(SimAcceleratorTest, MissingStreamWaitIsSeen) {
  const SimAccelerator sim({.pace = Pace::kEager});  // this schedule gives the right values
  const at::Tensor x = on_sim(at::ones({4}));
  const c10::Stream side = sim.side_stream();
  const c10::Stream main(c10::Stream::DEFAULT, SimAccelerator::device());
  {
    const c10::StreamGuard guard(side);
    (void)(x + 1);
  }
  EXPECT_THAT(sim.complaints(), Contains(HasSubstr("'aten::add on stream 1' reads what 'copy from the CPU on default' "
                                                   "writes, in no order")));
}

TEST(SimAcceleratorTest, EventsAndRecordStreamPutStreamsInOrder) {
  for (const uint64_t seed : {0, 1, 2, 3, 4, 5, 6, 7}) {
    const SimAccelerator sim({.seed = seed});
    const c10::Stream side = sim.side_stream();
    const c10::Stream main(c10::Stream::DEFAULT, SimAccelerator::device());
    at::Tensor x = on_sim(at::ones({64}));
    c10::Event ready(at::kPrivateUse1);
    ready.record(main);
    at::Tensor y;
    {
      const c10::StreamGuard guard(side);
      side.wait(ready);
      y = x + 1;
    }
    x.record_stream(side);
    x = at::Tensor();
    const at::Tensor other = on_sim(at::zeros({64}));  // would take its place
    {
      const c10::StreamGuard guard(side);
      EXPECT_TRUE(same_as_cpu(y, at::full({64}, 2.F)));
    }
    EXPECT_THAT(sim.complaints(), IsEmpty()) << "seed " << seed;
  }
}

TEST(SimAcceleratorTest, FreeingUnderAnotherStreamsUseIsSeen) {
  const SimAccelerator sim;
  const c10::Stream side = sim.side_stream();
  at::Tensor x = on_sim(at::ones({64}));
  c10::Event ready(at::kPrivateUse1);
  ready.record(c10::Stream(c10::Stream::DEFAULT, SimAccelerator::device()));
  {
    const c10::StreamGuard guard(side);
    side.wait(ready);
    (void)(x + 1);
  }
  x = at::Tensor();
  EXPECT_THAT(sim.complaints(),
              Contains(HasSubstr("'free tensor on default' writes what 'aten::add on stream 1' reads")));
}

TEST(SimAcceleratorTest, MemoryHeldForAnotherStreamIsWaitedForBeforeOutOfMemory) {
  const SimAccelerator sim({.pace = Pace::kLazy, .capacity = KiB(64)});
  const auto options = at::TensorOptions(SimAccelerator::device()).dtype(at::kByte);
  at::Tensor x = at::empty({48 << 10}, options);
  x.record_stream(sim.side_stream());
  x = at::Tensor();
  EXPECT_EQ(sim.allocated(), KiB(48));
  EXPECT_NO_THROW(at::empty({32 << 10}, options));
  EXPECT_THAT(sim.complaints(), IsEmpty());
}

TEST(SimAcceleratorTest, NativeHandleIsTheChaosDevicesStream) {
  const SimAccelerator sim;
  for (c10::DeviceIndex i = 0; i < SimAccelerator::kDevices; ++i) {
    const c10::Stream stream = sim.side_stream(i);
    const StreamId id{reinterpret_cast<uintptr_t>(stream.native_handle())};
    EXPECT_TRUE(sim.chaos(i)->record(id).ok());
    EXPECT_NE(id, sim.chaos(i)->copy_stream(Direction::kOut));
    EXPECT_NE(id, sim.chaos(i)->copy_stream(Direction::kIn));
  }
  EXPECT_NE(sim.side_stream().native_handle(),
            c10::Stream(c10::Stream::DEFAULT, SimAccelerator::device()).native_handle());
}

TEST(SimAcceleratorTest, BackwardRunsOnTheEnginesDeviceThreadsUnderTheForwardsStreams) {
  const SimAccelerator sim;
  std::set<std::thread::id> threads;
  std::vector<c10::Stream> streams;
  const auto note = [&](const at::Tensor& tensor) {
    tensor.register_hook([&](const at::Tensor& gradient) {
      threads.insert(std::this_thread::get_id());
      streams.push_back(c10::impl::getDeviceGuardImpl(at::kPrivateUse1)->getStream(gradient.device()));
    });
  };
  const c10::Stream side = sim.side_stream();
  const at::Tensor x = on_sim(at::ones({4})).requires_grad_();
  const at::Tensor a = x * 2;
  at::Tensor b;
  c10::Event ready(at::kPrivateUse1);
  ready.record(c10::Stream(c10::Stream::DEFAULT, SimAccelerator::device()));
  {
    const c10::StreamGuard guard(side);
    side.wait(ready);
    b = a * 3;
  }
  const at::Tensor c = on_sim(b, 1) * 4;
  note(a);
  note(b);
  note(c);
  c.sum().backward();
  EXPECT_EQ(threads.size(), 2) << "a thread a device";
  EXPECT_FALSE(threads.contains(std::this_thread::get_id()));
  ASSERT_EQ(streams.size(), 3);
  EXPECT_EQ(streams[0].device_index(), 1);
  EXPECT_TRUE(same_as_cpu(x.grad(), at::full({4}, 24.F)));
}

TEST(SimAcceleratorTest, TwoDevicesInOneModelGiveTheCpusBits) {
  const auto gradients = [](std::optional<c10::Device> first, std::optional<c10::Device> second) {
    torch::manual_seed(5);
    nn::Linear in(16, 32), out(32, 16);
    at::Tensor x = at::randn({8, 16});
    if (first) {
      move_in_place(*in, *first);
      move_in_place(*out, *second);
      x = x.to(*first);
    }
    at::Tensor hidden = at::gelu(in(x));
    if (second) hidden = hidden.to(*second);
    out(hidden).pow(2).sum().backward();
    return std::vector<at::Tensor>{in->weight.grad().cpu(), out->weight.grad().cpu()};
  };
  const std::vector<at::Tensor> expected = gradients(std::nullopt, std::nullopt);
  for (const uint64_t seed : {0, 1, 2, 3}) {
    const SimAccelerator sim({.seed = seed});
    EXPECT_TRUE(same_bits(gradients(SimAccelerator::device(0), SimAccelerator::device(1)), expected));
    EXPECT_THAT(sim.complaints(), IsEmpty()) << "seed " << seed;
  }
}

TEST(SimAcceleratorTest, TensorsOfTwoDevicesDoNotMix) {
  const SimAccelerator sim;
  EXPECT_THROW(on_sim(at::ones({4}), 0) + on_sim(at::ones({4}), 1), c10::Error);
}

TEST(SimAcceleratorTest, WrongShapesFailAtTheCallAndWrongBytesLater) {
  const SimAccelerator sim;
  const at::Tensor table = on_sim(at::ones({4, 2}));
  EXPECT_THROW(table.matmul(table), c10::Error);
  EXPECT_THAT(sim.complaints(), IsEmpty());
  EXPECT_NO_THROW(at::embedding(table, on_sim(at::full({3}, 9, at::kLong))));
  EXPECT_THAT(sim.complaints(), Contains(HasSubstr("operator failed: aten::")));
}

TEST(SimAcceleratorTest, SeedReplaysTheSchedule) {
  const auto schedule = [](uint64_t seed) {
    const SimAccelerator sim({.seed = seed});
    (void)train("mlp", SimAccelerator::device(), /*adam=*/false);
    return sim.chaos()->schedule();
  };
  EXPECT_EQ(schedule(1), schedule(1));
  EXPECT_NE(schedule(1), schedule(2));
}

}  // namespace
}  // namespace ebbtide::test
