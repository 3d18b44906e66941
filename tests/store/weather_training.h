// Passes of any shape and fate, on the host or on a pretend accelerator, with budgets looked at after every event.
#pragma once

#include <ebbtide/store/store_core.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "tests/store/device_trainer.h"
#include "tests/store/fake_storage.h"
#include "tests/support/pattern.h"
#include "tests/support/watchdog.h"

namespace ebbtide::test {

enum class Where { kHost, kAccelerator };
inline void PrintTo(Where where, std::ostream* out) {
  *out << (where == Where::kHost ? "host" : "accelerator");
}

/// What a forward saves, in order.
struct ShapedTensor {
  size_t bytes = 0;     ///< whole words
  bool redone = false;  ///< on the host: the bytes of the one before, which it can be made of
};
using Shape = std::vector<ShapedTensor>;

inline size_t bytes_of(const Shape& shape) {
  size_t sum = 0;
  for (const ShapedTensor& tensor : shape) sum += tensor.bytes;
  return sum;
}

/// How a pass goes.
enum class Fate { kToItsEnd, kNoBackward, kForwardThrows, kThrowsInBetween, kBackwardStops };

struct WeatherOptions {
  Where where = Where::kHost;
  Bytes device_budget;
  Bytes host_budget = MiB(8);
  std::vector<std::string> spill_to;
  size_t largest = 0;  ///< bytes of a tensor
  int threads = 1;     ///< that train on the store
  uint64_t seed = 1;
};

/// Threads: one; several have one each, made of the first.
class WeatherTraining {
 public:
  explicit WeatherTraining(const WeatherOptions& how) : how_(how), random_(how.seed) {
    Options options;
    options.device_budget = how.device_budget;
    options.host_budget = how.host_budget;
    options.spill_to = how.spill_to;
    options.spill_budget = MiB(64);
    options.min_bytes = KiB(4);
    core_ = StoreCore::open(options);
    core_->plan_for_accelerators(true);
    core_->set_warning_handler([](const std::string& text) { ADD_FAILURE() << text; });
    if (how.where == Where::kAccelerator)
      trainer_ = std::make_unique<DeviceTrainer>(*core_, ChaosOptions{.seed = how.seed, .pace = Pace::kEager},
                                                 StoreCore::DeviceOptions{.bandwidth = {link(), link()}});
  }
  /// REQUIRES: on the host.
  WeatherTraining(const WeatherTraining& first, uint64_t seed) : how_(first.how_), random_(seed), core_(first.core_) {}

  struct Alive {
    std::shared_ptr<Pass> pass;
    std::vector<DeviceTrainer::Saved> saved;
    Fate fate = Fate::kToItsEnd;
  };

  /// Called before every pack and unpack.
  std::function<void()> before_event = [] {};

  /// What it returns has nothing to ask for where its fate was to end with the forward.
  Alive forward(const Shape& shape, Fate fate = Fate::kToItsEnd) {
    Alive alive{.fate = fate};
    const size_t stop = fate == Fate::kForwardThrows ? random_() % (shape.size() + 1) : shape.size();
    for (size_t i = 0; i < stop && !testing::Test::HasFatalFailure(); ++i) {
      event("a pack");
      save(alive, shape[i]);
      check_budgets(0);
    }
    event("the scope's end");
    if (alive.pass) core_->scope_ended(alive.pass);  // as a scope does that an exception leaves
    check_budgets(0);
    if (fate != Fate::kToItsEnd && fate != Fate::kBackwardStops) alive.saved.clear();
    return alive;
  }

  void backward(Alive alive) {
    if (alive.saved.empty()) return;
    const size_t stop = alive.fate == Fate::kBackwardStops ? random_() % alive.saved.size() : 0;
    const auto task = static_cast<int>(random_() >> 34);
    bool began = false;
    while (alive.saved.size() > stop && !testing::Test::HasFatalFailure()) {
      event("an unpack");
      began |= core_->task_began(*alive.saved.back().record, task);
      use(alive.saved.back());
      check_budgets(2);
      alive.saved.pop_back();
      check_budgets(2);
    }
    event("a backward's end");
    if (random_() % 2 == 0) alive.saved.clear();
    if (began) core_->task_ended(*alive.pass, task);
    alive.saved.clear();
    check_budgets(0);
  }

  void step(const Shape& shape, Fate fate = Fate::kToItsEnd) { backward(forward(shape, fate)); }

  /// Nothing is left. REQUIRES: no pass is alive, on any thread.
  void end() {
    event("the end");
    if (trainer_) {
      trainer_->drain();
      EXPECT_EQ(trainer_->wrong(), 0);
      EXPECT_THAT(trainer_->device().races(), testing::IsEmpty());
      EXPECT_THAT(trainer_->device().misuse(), testing::IsEmpty());
    }
    core_->close();
    const Stats stats = core_->stats();
    EXPECT_EQ(stats.device.bytes, Bytes(0));
    EXPECT_EQ(stats.spill.bytes, Bytes(0));
    EXPECT_EQ(stats.handed_over, Bytes(0));
    EXPECT_EQ(stats.referenced_elsewhere, Bytes(0));
    EXPECT_LE(stats.device.peak_bytes, how_.device_budget + beyond(2));
    EXPECT_LE(stats.host.peak_bytes, stats.host.budget_bytes);
    EXPECT_LE(stats.spill.peak_bytes, stats.spill.budget_bytes);
    EXPECT_EQ(stats.kept.tensors + stats.offloaded.tensors + stats.spilled.tensors + stats.recomputed.tensors,
              stats.saved.tensors);
  }

  StoreCore& core() { return *core_; }
  uint64_t draw() { return random_(); }

 private:
  static constexpr double kRedo_s = 20e-6;  // less than any transfer

  /// A GB/s, known from the start: what is timed is a matter of luck.
  static Bandwidth link() {
    Bandwidth known;
    for (const LinkUse use : {LinkUse::kAlone, LinkUse::kDuplex}) known.add(MiB(1), 1e-3, use);
    return known;
  }

  /// The bytes of its input.
  class Copy final : public FakeRecipe {
   public:
    Copy(std::shared_ptr<Record> input, size_t bytes)
        : FakeRecipe({std::move(input)}, Bytes(0), Bytes(static_cast<int64_t>(bytes))) {}
    bool inputs_unchanged() const noexcept override { return true; }
    Memory run(StoreCore& core) const override {
      Memory made(static_cast<size_t>(end().count()));
      std::memcpy(made.data(), unpack(core, *inputs()[0], kRedo_s)->data(), made.bytes());
      return made;
    }
  };

  void save(Alive& alive, const ShapedTensor& tensor) {
    if (trainer_) {
      alive.saved.push_back(trainer_->save(alive.pass, random_(), tensor.bytes));
      return;
    }
    const bool redone = tensor.redone && !alive.saved.empty();
    const DeviceTrainer::Saved before = redone ? alive.saved.back() : DeviceTrainer::Saved();
    const uint64_t seed = redone ? before.seed : random_();
    const Memory memory(redone ? before.part.bytes : tensor.bytes);
    DeviceTrainer::fill(memory.data(), seed, memory.bytes());
    const StoreCore::Packed packed =
        core_->pack(alive.pass, whole(memory), [&] { return std::make_shared<FakeStorage>(memory); });
    if (redone && packed.wanted != StoreCore::RecipeWanted::kNone)
      core_->offer_recipe(*packed.record, std::make_shared<Copy>(before.record, memory.bytes()));
    alive.saved.push_back({packed.record, seed, {.bytes = memory.bytes()}});
  }

  void use(const DeviceTrainer::Saved& saved) {
    if (trainer_) {
      (void)trainer_->use(saved);
      return;
    }
    const auto storage = unpack(*core_, *saved.record, kRedo_s);
    ASSERT_EQ(count_wrong(storage->data(), saved.part.bytes, static_cast<uint32_t>(saved.seed)), 0u);
  }

  /// What a thread may hold over the budget: the tensor that it unpacks, and the one that this is made of.
  Bytes beyond(int tensors) const {
    return Bytes(static_cast<int64_t>(how_.largest) * (how_.threads > 1 ? 2 * how_.threads : tensors));
  }
  void check_budgets(int tensors) {
    const Stats stats = core_->stats();
    ASSERT_LE(stats.device.bytes.count(), (how_.device_budget + beyond(tensors)).count()) << "at " << where_;
    ASSERT_LE(stats.host.bytes, stats.host.budget_bytes);
    ASSERT_LE(stats.spill.bytes, stats.spill.budget_bytes);
  }

  void event(const char* what) {
    before_event();
    where_ = what + (", the " + std::to_string(++events_) + ". event of seed ") + std::to_string(how_.seed);
    watchdog_.now(where_);
  }

  Watchdog watchdog_{std::chrono::seconds(60)};
  const WeatherOptions how_;
  std::mt19937_64 random_;
  std::shared_ptr<StoreCore> core_;
  std::unique_ptr<DeviceTrainer> trainer_;
  int64_t events_ = 0;
  std::string where_;  ///< the last event
};

}  // namespace ebbtide::test
