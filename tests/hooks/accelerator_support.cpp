#include <ebbtide/hooks/accelerators.h>
#include <ebbtide/hooks/module_parameters.h>
#include <ebbtide/hooks/scope.h>

#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/Event.h>
#include <gmock/gmock.h>
#include <tests/hooks/accelerator_support.h>
#include <tests/hooks/models.h>
#include <tests/support/eventually.h>

#include <chrono>
#include <cstdlib>
#include <map>
#include <thread>

namespace ebbtide::test {

using testing::IsEmpty;

void order(c10::Stream earlier, c10::Stream later) {
  c10::Event event(c10::DeviceType::PrivateUse1);
  event.record(earlier);
  later.wait(event);
}

Machine::Machine(const Options& options, SimOptions sim, MutantDevice::Mutation mutation)
    : sim_(sim), mutant_(mutation != MutantDevice::Mutation::kNone), store_(std::in_place, options) {
  store_->on_warning([](const std::string&) {});
  hooks_of(*store_->core())
      ->accelerators.serve(c10::DeviceType::PrivateUse1, [this, seed = sim.seed, mutation](c10::DeviceIndex index) {
        constexpr unsigned kLooksIn100[] = {100, 5, 30};
        auto late = std::make_shared<LateDevice>(sim_.chaos(index), seed, kLooksIn100[seed % 3]);
        late_.push_back(late);
        return Result(std::shared_ptr<Device>(std::make_shared<MutantDevice>(std::move(late), mutation)));
      });
}

Machine::~Machine() {
  if (!mutant_) EXPECT_THAT(sim_.complaints(), IsEmpty());
  expect_all_is_over(*store_);
  // The store's thread sees copies in flight to their end for a second: of a device that answers.
  for (const auto& late : late_) late->be_in_time();
  store_.reset();
  EXPECT_TRUE(eventually([&] {
    for (c10::DeviceIndex i = 0; i < kDevices; ++i) sim_.chaos(i)->run_all();
    c10::getDeviceAllocator(c10::DeviceType::PrivateUse1)->emptyCache();  // of what recordStream held back
    return sim_.allocated(0) + sim_.allocated(1) == Bytes(0);
  })) << "device memory outlived the store";
  if (!mutant_) EXPECT_THAT(sim_.complaints(), IsEmpty());
}

Subject build_on_device(const std::string& name, int64_t times, c10::DeviceIndex index) {
  Subject model = build(name);
  for (const at::Tensor& parameter : model.module->parameters())
    move_in_place(parameter, SimAccelerator::device(index));
  for (const at::Tensor& buffer : model.module->buffers()) move_in_place(buffer, SimAccelerator::device(index));
  std::vector<int64_t> repeats(static_cast<size_t>(model.input.dim()), 1);
  repeats[name.starts_with("transformer") ? 1 : 0] = times;
  model.input = model.input.repeat(repeats).to(SimAccelerator::device(index));
  return model;
}

Tensors to_cpu(const Tensors& tensors) {
  Tensors on_cpu;
  for (const at::Tensor& tensor : tensors) on_cpu.push_back(tensor.cpu());
  return on_cpu;
}

Tensors train(const std::string& name, Store* store, int64_t times, int steps) {
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

const Tensors& plain(const std::string& name, int64_t times) {
  static std::map<std::pair<std::string, int64_t>, Tensors> known;
  const auto [it, first] = known.try_emplace({name, times});
  if (first) {
    const SimAccelerator sim;
    it->second = train(name, nullptr, times);
    EXPECT_THAT(sim.complaints(), IsEmpty());
  }
  return it->second;
}

uint64_t seeds(uint64_t usual) {
  return std::getenv("EBBTIDE_LONG") != nullptr ? 10 * usual : usual;
}

Options to_host(Bytes device_budget) {
  Options options = keeping(device_budget);
  options.host_budget = MiB(32);
  return options;
}

Options to_disk(const Folder& folder, Bytes device_budget) {
  Options options = keeping(device_budget);
  options.spill_to = {folder.path()};
  options.host_budget = MiB(2);
  return options;
}

Bytes largest_saved(const std::string& name) {
  if (name == "conv") return Bytes(8 * 16 * 24 * 24 * 4);
  if (name == "transformer") return Bytes(32 * 4 * 256 * 4);
  return Bytes(64 * 256 * 4);
}

at::Tensor device_leaf(int seed, c10::DeviceIndex index) {
  return leaf(seed).detach().to(SimAccelerator::device(index)).requires_grad_(true);
}

void expect_same_as_plain(const std::function<Tensors(SimAccelerator&, Store*)>& body,
                          const std::vector<Bytes>& budgets) {
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

at::Tensor under(Store* store, const std::function<at::Tensor()>& forward) {
  std::optional<OffloadScope> scope;
  if (store != nullptr) scope.emplace(*store);
  return forward();
}

}  // namespace ebbtide::test
