// A thousand small transformers on accelerators: every seed is another schedule of the streams, another budget, and
// another mixture of what programs do.
#include <ebbtide/hooks/module_parameters.h>

#include <c10/core/StreamGuard.h>
#include <gmock/gmock.h>
#include <tests/hooks/accelerator_support.h>
#include <tests/hooks/models.h>
#include <tests/support/sweep.h>

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace ebbtide::test {
namespace {

using testing::IsEmpty;

/// What a program does beside training; any mixture.
enum Habit : unsigned {
  kInterleaves = 1,      ///< micro-batches' forwards and backwards
  kDropsGraph = 2,       ///< one that was never used
  kSideStreamInput = 4,  ///< made there, used on the main one
  kSwitchesStream = 8,   ///< for every other forward
  kEndsStream = 16,      ///< of its own, before the graph that was made there
  kTwoDevices = 32,
};
constexpr unsigned kMixtures = 64;

class Program {
 public:
  Program(SimAccelerator& sim, Store* store, unsigned habits) : sim_(sim), store_(store), habits_(habits) {
    models_.push_back(build_on_device("transformer"));
    if (does(kTwoDevices)) models_.push_back(build_on_device("transformer", 1, 1));
    if (store_ == nullptr) return;
    for (const Subject& model : models_) store_->attach(*model.module);
  }

  /// Losses and gradients of two steps of SGD.
  Tensors run() {
    torch::manual_seed(2);
    Tensors seen;
    for (int step = 0; step < 2; ++step) {
      for (const Subject& model : models_) model.module->zero_grad();
      if (does(kDropsGraph)) forward(input(1));
      if (does(kEndsStream)) forward_on_a_stream_that_ends();
      at::Tensor first = forward(input(2));
      seen.push_back(first.detach());
      if (does(kInterleaves)) {
        at::Tensor second = does(kSwitchesStream) ? forward_on_side_stream(input(3)) : forward(input(3));
        first.backward();
        forward(input(4)).backward();
        second.backward();
      } else {
        first.backward();
        if (does(kSwitchesStream)) forward_on_side_stream(input(3)).backward();
      }
      const torch::NoGradGuard no_grad;
      for (const Subject& model : models_) {
        for (const at::Tensor& parameter : model.module->parameters()) {
          seen.push_back(parameter.grad().clone());
          parameter.sub_(parameter.grad(), 0.01);
        }
      }
    }
    return to_cpu(seen);
  }

 private:
  bool does(Habit habit) const { return (habits_ & habit) != 0; }

  at::Tensor input(int number) {
    const at::Tensor& base = models_.front().input;
    if (!does(kSideStreamInput)) return base * number;
    const c10::Stream side = sim_.side_stream();
    order(default_stream(), side);
    at::Tensor made;
    {
      const c10::StreamGuard guard(side);
      made = base * number;
    }
    order(side, default_stream());
    made.record_stream(default_stream());
    return made;
  }

  at::Tensor forward(const at::Tensor& x) {
    return under(store_, [&] {
      at::Tensor hidden = models_[0].forward(x);
      if (does(kTwoDevices)) hidden = models_[1].forward(hidden.to(SimAccelerator::device(1)));
      return hidden.pow(2).mean();
    });
  }

  at::Tensor forward_on_side_stream(const at::Tensor& x) {
    const c10::Stream side = sim_.side_stream();
    order(default_stream(), side);
    x.record_stream(side);
    at::Tensor loss;
    {
      const c10::StreamGuard guard(side);
      loss = forward(x);
    }
    order(side, default_stream());
    if (loss.device().index() == 0) loss.record_stream(default_stream());
    return loss;
  }

  /// Of a stream that torch did not make; it is gone before the hooks are.
  void forward_on_a_stream_that_ends() {
    ChaosDevice& chaos = *sim_.chaos();
    const StreamId mine = chaos.make_stream("the user's own");
    const c10::Stream stream(c10::Stream::UNSAFE, SimAccelerator::device(), static_cast<c10::StreamId>(mine));
    order(default_stream(), stream);
    at::Tensor loss;
    {
      const c10::StreamGuard guard(stream);
      loss = forward(models_.front().input * 5);  // its memory is of that stream too
    }
    order(stream, default_stream());
    stream.synchronize();
    chaos.end_stream(mine);
  }

  SimAccelerator& sim_;
  Store* const store_;
  const unsigned habits_;
  std::vector<Subject> models_;
};

const Tensors& plain_program(unsigned habits) {
  static std::map<unsigned, Tensors> known;
  const auto [it, first] = known.try_emplace(habits);
  if (first) {
    SimAccelerator sim;
    it->second = Program(sim, nullptr, habits).run();
    EXPECT_THAT(sim.complaints(), IsEmpty()) << "the program itself is wrong";
  }
  return it->second;
}

TEST(AcceleratorSweep, SmallTransformersInAnySchedule) {
  const Folder folder;
  sweep("small transformers on accelerators", 1000, [&](uint64_t seed) {
    const auto habits = static_cast<unsigned>(seed * 0x9e3779b97f4a7c15 >> 58) % kMixtures;
    SCOPED_TRACE("habits " + std::to_string(habits));
    const Bytes budget = KiB(static_cast<double>(seed * 37 % 600));
    const Tensors& expected = plain_program(habits);
    Machine machine(seed % 2 == 0 ? to_host(budget) : to_disk(folder, budget), {.seed = seed});
    EXPECT_TRUE(same_bits(Program(machine.sim(), &machine.store(), habits).run(), expected));
    if (seed % 2 != 0) return;  // behind a late device tensors wait for room in host memory, see AcceleratorModelTest
    const Stats stats = machine.store().stats();
    for (size_t i = 1; i < stats.devices.size(); ++i)
      EXPECT_LE(stats.devices[i].peak_bytes, budget + largest_saved("transformer"));
  });
}

}  // namespace
}  // namespace ebbtide::test
