// Random training programs on pretend accelerators: right bytes, no race, budgets held after every event, nothing left.
#include <ebbtide/store/store_core.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <deque>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "tests/store/device_trainer.h"
#include "tests/support/eventually.h"
#include "tests/support/sweep.h"

namespace ebbtide::test {
namespace {

using testing::IsEmpty;

struct Machine {
  Bytes device_budget;
  Bytes host_budget = MiB(8);
  bool spills = true;
  int devices = 1;
  std::optional<Pace> pace;
  bool own_thread = false;
  bool cuda = false;  // the store's device is CudaDevice, over a pretend driver
};

struct Live {
  std::shared_ptr<Pass> pass;
  std::vector<std::pair<size_t, DeviceTrainer::Saved>> saved;  // device and tensor
  int task = 0;
  bool began = false;
};

/// A few passes of one to some tens of tensors on one machine; in every other program all pack the same, so that later
/// ones follow a plan. Tensors are small where memory is not short, so that many programs are tried.
class RandomTraining {
 public:
  RandomTraining(const Machine& machine, uint64_t seed, const std::string& folder)
      : machine_(machine), random_(seed), largest_(short_of_host_memory() ? 96 << 10 : 8 << (10 + random_() % 4)) {
    Options options;
    options.device_budget = machine.device_budget;
    options.host_budget = machine.host_budget;
    options.min_bytes = KiB(4);
    if (machine.spills) options.spill_to = {folder};
    core_ = StoreCore::open(options);
    core_->plan_for_accelerators(true);
    core_->set_warning_handler([](const std::string&) {});
    std::vector<ChaosOptions> chaos;
    for (int i = 0; i < machine.devices; ++i)
      chaos.push_back({.seed = seed + static_cast<uint64_t>(i), .pace = machine.pace, .times_events = seed % 2 == 0});
    if (machine.cuda) driver_ = std::make_shared<FakeCudaApi>(chaos);
    const StoreCore::DeviceOptions how{.own_thread = machine.own_thread};
    for (int i = 0; i < machine.devices; ++i) {
      trainers_.push_back(machine.cuda ? std::make_unique<DeviceTrainer>(*core_, driver_, i, how)
                                       : std::make_unique<DeviceTrainer>(*core_, chaos[static_cast<size_t>(i)], how));
      others_.push_back(trainers_.back()->device().make_stream("other"));
    }
  }

  /// Returns how many plans were made.
  int64_t run() {
    const auto steps = static_cast<int>(1 + random_() % 4) + (repeats_ ? 2 : 0);
    for (int step = 0; step < steps && !testing::Test::HasFatalFailure(); ++step) {
      live_.push_back(forward());
      if (random_() % 3 == 0 && live_.size() < 3) continue;  // two passes at once
      backward(live_.front());
      live_.pop_front();
    }
    while (!live_.empty()) {
      backward(live_.front());
      live_.pop_front();
    }
    for (auto& trainer : trainers_) trainer->drain();
    // The store's own thread may be just letting go of what it looked at last.
    (void)eventually([&] {
      return std::ranges::all_of(trainers_, [](auto& trainer) { return trainer->device().live_bytes() == Bytes(0); });
    });
    for (auto& trainer : trainers_) {
      EXPECT_EQ(trainer->wrong(), 0);
      EXPECT_THAT(trainer->device().races(), IsEmpty());
      EXPECT_THAT(trainer->device().misuse(), IsEmpty());
      EXPECT_EQ(trainer->device().live_bytes(), Bytes(0));
    }
    if (driver_) {
      EXPECT_THAT(driver_->misuse(), IsEmpty());
      // Where host memory is short, what is demanded from disk comes back through memory of the system's.
      if (!short_of_host_memory()) {
        EXPECT_EQ(driver_->pageable_copies(), 0);
      }
      EXPECT_TRUE(driver_->thread_is_as_before());
    }
    core_->close();
    (void)eventually([&] {
      (void)core_->trim();
      return core_->stats().host.bytes == Bytes(0);
    });
    const Stats stats = core_->stats();
    EXPECT_EQ(stats.device.bytes, Bytes(0));
    EXPECT_EQ(stats.host.bytes, Bytes(0));
    EXPECT_EQ(stats.spill.bytes, Bytes(0));
    EXPECT_EQ(stats.referenced_elsewhere, Bytes(0));
    EXPECT_LE(stats.host.peak_bytes, stats.host.budget_bytes);
    EXPECT_EQ(stats.kept.tensors + stats.offloaded.tensors + stats.spilled.tensors, stats.saved.tensors);
    return stats.plans;
  }

 private:
  bool short_of_host_memory() const { return machine_.host_budget < MiB(8); }

  Live forward() {
    Live live;
    live.task = ++tasks_;
    shape_.seed(repeats_ ? *repeats_ : random_());
    std::vector<DeviceTensor> elsewhere;
    const auto count = 1 + shape_() % (short_of_host_memory() ? 40 : 24);
    for (uint64_t i = 0; i < count; ++i) {
      const size_t device = shape_() % trainers_.size();
      DeviceTrainer& trainer = *trainers_[device];
      const uint64_t content = random_();
      const size_t bytes = (4096 + shape_() % (largest_ - 4096)) / 16 * 16;
      {
        const DeviceTensor tensor = trainer.make(content, bytes);
        live.saved.emplace_back(device, trainer.pack(live.pass, tensor, content, part_of(bytes)));
        while (shape_() % 3 == 0)  // another of the same bytes, of some of them, of those between them
          live.saved.emplace_back(device, trainer.pack(live.pass, tensor, content, part_of(bytes)));
        if (shape_() % 5 == 0) elsewhere.push_back(tensor);
      }
      if (shape_() % 6 == 0) elsewhere.clear();
      check_budgets();
    }
    elsewhere.clear();
    core_->scope_ended(live.pass);
    check_budgets();
    return live;
  }

  /// All of a tensor, a run, or rows of it. Few shapes, so that they meet again.
  DeviceTrainer::Part part_of(size_t bytes) {
    if (shape_() % 2 == 0) return {.bytes = bytes};
    const size_t row = 512 << shape_() % 2, pitch = row * (2 + shape_() % 2);
    const size_t begin = 512 * (shape_() % 4), rows = shape_() % 5;
    const size_t all = bytes < begin + row ? 0 : (bytes - begin - row) / pitch + 1;
    if (all < 2) return {.bytes = bytes};
    if (rows == 0) return {.begin = begin, .bytes = row};
    return {.begin = begin, .bytes = row, .pitch = pitch, .rows = rows == 1 ? (all + 1) / 2 : all};
  }

  void use(Live& live, size_t index) {
    auto& [device, saved] = live.saved[index];
    DeviceTrainer& trainer = *trainers_[device];
    const StreamId compute = trainer.compute();
    const StreamId stream = random_() % 8 == 0 ? others_[device] : compute;
    live.began |= core_->task_began(*saved.record, live.task);
    if (stream != compute) trainer.order(compute, stream);
    {
      const auto storage = trainer.use(saved, stream);
      if (stream != compute) trainer.order(stream, compute);
    }
    check_budgets();
  }

  void backward(Live& live) {
    const auto kind = random_() % 6;  // 0: dropped
    if (kind == 1)
      for (size_t i = live.saved.size(); i-- > 0;) use(live, i);  // a kept graph
    while (kind != 0 && !live.saved.empty()) {
      const size_t index = kind == 2 ? random_() % live.saved.size() : live.saved.size() - 1;
      use(live, index);
      live.saved.erase(live.saved.begin() + static_cast<std::ptrdiff_t>(index));
      if (kind == 3 && random_() % 16 == 0) break;  // stops half-way
    }
    live.saved.clear();
    if (live.began) core_->task_ended(*live.pass, live.task, trainers_.front()->compute());
    check_budgets();
  }

  void check_budgets() {
    const Stats stats = core_->stats();
    EXPECT_LE(stats.host.bytes, stats.host.budget_bytes);
    // Where host memory is short it is the streams that make room, and nobody waits for a stream: over budget until
    // then.
    if (short_of_host_memory() && machine_.pace != Pace::kEager) return;
    for (size_t i = 1; i < stats.devices.size(); ++i)
      ASSERT_LE(stats.devices[i].bytes, machine_.device_budget + Bytes(static_cast<int64_t>(2 * largest_)));
  }

  const Machine machine_;
  std::mt19937_64 random_;
  const size_t largest_;  // bytes of a tensor
  const std::optional<uint64_t> repeats_ = random_() % 2 == 0 ? std::optional(random_()) : std::nullopt;
  std::mt19937_64 shape_;  // of a forward
  std::shared_ptr<StoreCore> core_;
  std::shared_ptr<FakeCudaApi> driver_;
  std::vector<std::unique_ptr<DeviceTrainer>> trainers_;
  std::vector<StreamId> others_;
  std::deque<Live> live_;
  int tasks_ = 0;
};

const auto kMachines = std::to_array<Machine>(
    {{.device_budget = Bytes(0)},
     {.device_budget = KiB(300)},
     {.device_budget = KiB(300), .spills = false},
     {.device_budget = KiB(100), .pace = Pace::kLazy},
     {.device_budget = KiB(100), .devices = 2},
     {.device_budget = KiB(300), .host_budget = MiB(2.5)},
     {.device_budget = Bytes(0), .host_budget = MiB(2.5), .pace = Pace::kEager},
     {.device_budget = KiB(300), .host_budget = MiB(2.5), .pace = Pace::kLazy},
     {.device_budget = KiB(300), .host_budget = MiB(2.5), .spills = false},
     {.device_budget = KiB(300), .host_budget = MiB(4), .devices = 2, .own_thread = true},
     {.device_budget = MiB(64)},
     {.device_budget = Bytes(0), .cuda = true},
     {.device_budget = KiB(300), .host_budget = MiB(2.5), .pace = Pace::kLazy, .cuda = true},
     {.device_budget = KiB(300), .host_budget = MiB(4), .devices = 2, .own_thread = true, .cuda = true}});

TEST(StoreDeviceSweep, BytesRacesBudgetsAndLeftovers) {
  const TemporaryFolder folder("ebbtide-device-sweep-");
  // Every seed opens a store, and to look at this machine's buses would take longer than the rest.
  ASSERT_EQ(::setenv("HWLOC_SYNTHETIC", "numa:1 pu:2", 1), 0);
  int64_t plans = 0;
  sweep("random passes at the store level", 100'000,
        [&](uint64_t seed) { plans += RandomTraining(kMachines[seed % kMachines.size()], seed, folder.path()).run(); });
  EXPECT_TRUE(plans > 0 || std::getenv("EBBTIDE_SEED") != nullptr) << "no pass followed any";
}

}  // namespace
}  // namespace ebbtide::test
