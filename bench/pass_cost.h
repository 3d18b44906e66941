// What the store costs the threads that train, a tensor, while a plan keeps nearly all of them.
#pragma once

#include <ebbtide/store/store_core.h>

#include <time.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdlib>
#include <limits>
#include <memory>
#include <string>
#include <vector>

namespace ebbtide::bench {

/// Of this thread: on a busy machine the wall clock tells of its other programs.
inline double cpu_seconds() {
  timespec now{};
  if (clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now) != 0) std::abort();
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

/// CPU seconds a tensor.
struct PassCost {
  double pack = 0;   ///< from its pack to what is decided of it
  double whole = 0;  ///< with its unpack and its death
  bool planned = false;
};

/// Passes of tensors of 4 KiB, of which the budget holds all but two, on a store that spills to `folder`. The best of
/// the passes that follow a plan.
class KeptTensors {
 public:
  KeptTensors(size_t tensors, const std::string& folder) : records_(tensors) {
    Options options;
    options.device_budget = kSize * static_cast<int64_t>(tensors - 2);
    options.host_budget = MiB(8);
    options.min_bytes = kSize;
    options.spill_to = {folder};
    core_ = StoreCore::open(options);
    for (size_t i = 0; i < tensors; ++i) storages_.push_back(std::make_shared<Storage>(*this));
  }

  PassCost measure(int passes) {
    constexpr int kLearned = 4;  // passes, until a plan rests on medians
    for (int pass = 0; pass < kLearned; ++pass) (void)one_pass();
    PassCost best{.pack = std::numeric_limits<double>::infinity(), .whole = std::numeric_limits<double>::infinity()};
    for (int pass = 0; pass < passes; ++pass) {
      const PassCost cost = one_pass();
      best.pack = std::min(best.pack, cost.pack);
      best.whole = std::min(best.whole, cost.whole);
      best.planned = !core_->plan().empty();
    }
    return best;
  }

 private:
  static constexpr Bytes kSize = KiB(4);

  /// All have the same bytes.
  class Storage final : public DeviceStorage {
   public:
    explicit Storage(KeptTensors& of) : of_(of) {}
    std::byte* data() const noexcept override { return of_.bytes_.data() + 64; }
    Bytes bytes() const noexcept override { return kSize; }
    int64_t references() const noexcept override { return 1; }
    bool plain() const noexcept override { return true; }
    const void* identity() const noexcept override { return this; }

   private:
    KeptTensors& of_;
  };
  class Returned final : public DeviceStorage {
   public:
    explicit Returned(std::shared_ptr<ReturnedMemory> memory) : memory_(std::move(memory)) { memory_->hand_over(); }
    std::byte* data() const noexcept override { return memory_->data(); }
    Bytes bytes() const noexcept override { return memory_->bytes(); }
    int64_t references() const noexcept override { return 1; }
    bool plain() const noexcept override { return true; }
    const void* identity() const noexcept override { return memory_->data(); }

   private:
    const std::shared_ptr<ReturnedMemory> memory_;
  };

  PassCost one_pass() {
    std::shared_ptr<Pass> pass;
    PassCost cost;
    double began = cpu_seconds();
    for (size_t i = 0; i < records_.size(); ++i) {
      const StoreCore::View view{.storage = storages_[i].get(),
                                 .version_counter = storages_[i].get(),
                                 .version = 0,
                                 .begin = Bytes(0),
                                 .end = kSize,
                                 .footprint = kSize};
      records_[i] = core_->pack(pass, view, [&] { return storages_[i]; }).record;
    }
    cost.pack = cost.whole = cpu_seconds() - began;
    core_->scope_ended(pass);
    began = cpu_seconds();
    const int task = ++tasks_;
    for (size_t i = records_.size(); i-- > 0;) {
      (void)core_->task_began(*records_[i], task);
      const StoreCore::Unpacked unpacked = core_->unpack(*records_[i]);
      if (unpacked.memory)
        (void)core_->adopt(*records_[i], unpacked.memory, std::make_shared<Returned>(unpacked.memory));
      records_[i] = nullptr;
    }
    cost.whole += cpu_seconds() - began;
    core_->task_ended(*pass, task);
    cost.pack /= static_cast<double>(records_.size());
    cost.whole /= static_cast<double>(records_.size());
    return cost;
  }

  alignas(4096) std::array<std::byte, 4096 + 4096> bytes_{};
  std::shared_ptr<StoreCore> core_;
  std::vector<std::shared_ptr<Storage>> storages_;
  std::vector<std::shared_ptr<Record>> records_;
  int tasks_ = 0;
};

}  // namespace ebbtide::bench
