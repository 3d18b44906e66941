// A training loop over the store on any rig, a real GPU's too.
#pragma once

#include <ebbtide/store/store_core.h>

#include <gtest/gtest.h>

#include <chrono>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "tests/store/device_trainer.h"

namespace ebbtide::test {

struct RigTrainingOptions {
  double budget_share = 0;  ///< of what a forward saves, for the device
  Bytes host_budget = MiB(64);
  std::string spill_to;  ///< empty: no disk
};

/// Each layer computes a tensor and saves it, every third one rows of it, and the memory of what the store lets go is
/// handed out again at once; the backward looks at every word that was saved, in computations, of two passes that are
/// alive together.
template <class Rig>
class RigTraining {
 public:
  RigTraining(Rig& rig, const RigTrainingOptions& how) : rig_(rig), compute_(rig.make_stream("compute")) {
    std::mt19937_64 random(1);
    int64_t saved = 0;
    for (size_t& bytes : layers_) {
      bytes = (64 << 10) + random() % (448 << 10) / 4 * 4;
      saved += static_cast<int64_t>(bytes);
    }
    Options options;
    options.device_budget = Bytes(static_cast<int64_t>(static_cast<double>(saved) * how.budget_share));
    options.host_budget = how.host_budget;
    options.min_bytes = KiB(4);
    if (!how.spill_to.empty()) options.spill_to = {how.spill_to};
    core_ = StoreCore::open(options);
    core_->set_warning_handler([](const std::string& text) { ADD_FAILURE() << text; });
    number_ = core_->add_device(rig_.share(), std::make_shared<Allocator>(rig_), {.own_thread = true});
  }

  void run(int steps) {
    for (int step = 0; step < steps; ++step) {
      PassInUse first = forward(), second = forward();
      backward(std::move(first));
      (void)forward();  // dropped without a backward
      backward(std::move(second));
    }
    until([&] { return core_->stats().device.bytes == Bytes(0); });
    core_->close();
    until([&] {
      (void)core_->trim();
      return core_->stats().host.bytes == Bytes(0);
    });
    EXPECT_EQ(rig_.wrong(), 0u);
    const Stats stats = core_->stats();
    EXPECT_EQ(stats.device.bytes, Bytes(0));
    EXPECT_EQ(stats.host.bytes, Bytes(0));
    EXPECT_EQ(stats.spill.bytes, Bytes(0));
    EXPECT_LE(stats.host.peak_bytes, stats.host.budget_bytes);
    EXPECT_GT(stats.offloaded.tensors + stats.spilled.tensors, 0);
  }
  Stats stats() const { return core_->stats(); }

 private:
  static constexpr int kLayers = 24;
  static constexpr size_t kRow = 16 << 10;

  class Allocator final : public DeviceAllocator {
   public:
    explicit Allocator(Rig& rig) : rig_(rig) {}
    Result<std::shared_ptr<DeviceStorage>> allocate(Bytes bytes, StreamId stream) override {
      const auto size = static_cast<size_t>(bytes.count());
      return std::shared_ptr<DeviceStorage>(std::make_shared<ChaosStorage>(
          std::make_shared<DeviceMemoryImpl>(DeviceMemoryImpl{rig_.allocate(size, stream), size, 0})));
    }

   private:
    Rig& rig_;
  };
  struct Saved {
    std::shared_ptr<Record> record;
    uint32_t seed = 0;
    size_t bytes = 0;
    size_t rows = 1;
  };
  struct PassInUse {
    std::shared_ptr<Pass> pass;
    std::vector<Saved> saved;
  };

  PassInUse forward() {
    PassInUse made;
    for (size_t layer = 0; layer < layers_.size(); ++layer) {
      const size_t bytes = layers_[layer];
      const size_t rows = layer % 3 == 2 ? (bytes + kRow) / (2 * kRow) : 1;
      const uint32_t seed = seed_ + 1;
      seed_ += static_cast<uint32_t>(rows);
      const auto tensor =
          std::make_shared<DeviceMemoryImpl>(DeviceMemoryImpl{rig_.allocate(bytes, compute_), bytes, 0});
      each_row(rows, bytes, [&](size_t at, size_t of_row, uint32_t row) {
        rig_.write(compute_, tensor->memory.get() + at, of_row, seed + row);
      });
      const Bytes size(static_cast<int64_t>(bytes));
      StoreCore::View view{.storage = tensor.get(),
                           .version_counter = &tensor->version,
                           .version = 0,
                           .begin = Bytes(0),
                           .end = size,
                           .footprint = size,
                           .device = number_,
                           .stream = compute_};
      if (rows > 1) {
        view.rows = {Bytes(kRow), Bytes(2 * kRow), static_cast<int64_t>(rows)};
        view.end = Bytes(static_cast<int64_t>((rows - 1) * 2 * kRow + kRow));
      }
      auto packed = core_->pack(made.pass, view, [&] { return std::make_shared<ChaosStorage>(tensor); });
      made.saved.push_back({std::move(packed.record), seed, bytes, rows});
    }
    core_->scope_ended(made.pass);
    return made;
  }

  void backward(PassInUse used) {
    const int task = ++tasks_;
    const bool began = core_->task_began(*used.saved.back().record, task);
    for (; !used.saved.empty(); used.saved.pop_back()) {
      const Saved& saved = used.saved.back();
      const StoreCore::Unpacked unpacked = core_->unpack(*saved.record, compute_);
      const std::byte* const data = unpacked.storage->data() - unpacked.origin.count();
      each_row(saved.rows, saved.bytes, [&](size_t at, size_t of_row, uint32_t row) {
        rig_.check(compute_, data + at, of_row, saved.seed + row);
      });
    }
    if (began) core_->task_ended(*used.pass, task);
  }

  /// All of a tensor is one row.
  template <class Do>
  static void each_row(size_t rows, size_t bytes, Do&& act) {
    for (size_t row = 0; row < rows; ++row) act(row * 2 * kRow, rows == 1 ? bytes : kRow, static_cast<uint32_t>(row));
  }

  /// What is enqueued ends, and the store sees it.
  void until(const std::function<bool()>& done) {
    const auto give_up_at = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    while (!done() && std::chrono::steady_clock::now() < give_up_at) {
      rig_.finish();
      core_->pump();
      core_->scope_ended(nullptr);
    }
  }

  Rig& rig_;
  const StreamId compute_;
  std::shared_ptr<StoreCore> core_;
  std::vector<size_t> layers_ = std::vector<size_t>(kLayers);
  int number_ = 0;
  int tasks_ = 0;
  uint32_t seed_ = 0;
};

/// The cases that every rig runs: budgets of none, a tenth and half, with host memory enough, and with a disk behind
/// too little of it.
struct RigTrainingCase {
  const char* name;
  double budget_share;
  bool spills;
};
inline constexpr RigTrainingCase kRigTrainingCases[] = {
    {"NothingStaysHost", 0, false}, {"ATenthStaysHost", 0.1, false}, {"HalfStaysHost", 0.5, false},
    {"NothingStaysDisk", 0, true},  {"ATenthStaysDisk", 0.1, true},  {"HalfStaysDisk", 0.5, true},
};
inline void PrintTo(const RigTrainingCase& it, std::ostream* out) {
  *out << it.name;
}

template <class Rig>
void run_rig_training(Rig& rig, const RigTrainingCase& it) {
  const TemporaryFolder folder("ebbtide-rig-training-");
  RigTrainingOptions options{.budget_share = it.budget_share};
  if (it.spills) {
    options.host_budget = MiB(4);
    options.spill_to = folder.path();
  }
  RigTraining<Rig> training(rig, options);
  training.run(3);
  if (it.spills) {
    EXPECT_GT(training.stats().spilled.tensors, 0);
  }
}

}  // namespace ebbtide::test
