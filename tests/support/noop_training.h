// A store over a driver that does nothing: what is left is what the store costs the threads that train.
#pragma once

#include <ebbtide/store/store_core.h>
#include <ebbtide/transfer/block_cache.h>
#include <ebbtide/transfer/cuda_device.h>
#include <ebbtide/transfer/device_allocator.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "tests/support/noop_cuda_api.h"

namespace ebbtide::test {

/// Passes of tensors that are saved while they are the program's, leave, and are unpacked in the reverse order. The
/// program's own part, storages among it, takes no memory of the heap after the first pass.
/// Threads: one at a time.
class NoopTraining {
 public:
  explicit NoopTraining(size_t tensors) : tensors_(tensors), records_(tensors) {
    Options options;
    options.device_budget = Bytes(0);
    options.host_budget = MiB(256);
    core_ = StoreCore::open(options);
    core_->follow_plans(false);  // none is ever made, for nothing here takes time: passes would be timed without end
    const auto device = CudaDevice::open(std::make_shared<NoopCudaApi>(), 0).value();
    number_ = core_->add_device(device, std::make_shared<Allocator>(storages_), {.own_thread = false});
  }

  /// All tensors are saved and leave.
  void forward() {
    pass_ = nullptr;
    for (size_t i = 0; i < tensors_; ++i) {
      Tensor& tensor = made_.emplace_back(storages_, kSize);
      const StoreCore::View view{.storage = tensor.storage->identity(),
                                 .version_counter = tensor.storage->identity(),
                                 .version = 0,
                                 .begin = Bytes(0),
                                 .end = kSize,
                                 .footprint = kSize,
                                 .device = number_,
                                 .stream = kCompute};
      records_[i] = core_->pack(pass_, view, [&] { return tensor.storage; }).record;
      made_.clear();
    }
    core_->scope_ended(pass_);
  }
  /// All tensors come back and die.
  void backward() {
    const bool began = core_->task_began(*records_.back(), ++task_);
    for (size_t i = tensors_; i-- > 0;) {
      (void)core_->unpack(*records_[i], kCompute);
      records_[i] = nullptr;
    }
    if (began) core_->task_ended(*pass_, task_, kCompute);
  }
  Stats stats() const { return core_->stats(); }

  static constexpr Bytes kSize = MiB(1);

 private:
  static constexpr StreamId kCompute{0x1000};

  class Storage final : public DeviceStorage {
   public:
    explicit Storage(Bytes bytes) : bytes_(bytes) {}
    std::byte* data() const noexcept override { return reinterpret_cast<std::byte*>(0x20000000); }  // never touched
    Bytes bytes() const noexcept override { return bytes_; }
    int64_t references() const noexcept override { return 1; }
    bool plain() const noexcept override { return true; }
    const void* identity() const noexcept override { return this; }

   private:
    const Bytes bytes_;
  };
  struct Tensor {
    Tensor(const CachedAllocator<Storage>& memory, Bytes bytes)
        : storage(std::allocate_shared<Storage>(memory, bytes)) {}
    std::shared_ptr<Storage> storage;
  };
  class Allocator final : public DeviceAllocator {
   public:
    explicit Allocator(const CachedAllocator<Storage>& memory) : memory_(memory) {}
    Result<std::shared_ptr<DeviceStorage>> allocate(Bytes bytes, StreamId) override {
      return std::shared_ptr<DeviceStorage>(std::allocate_shared<Storage>(memory_, bytes));
    }

   private:
    const CachedAllocator<Storage> memory_;
  };

  const size_t tensors_;
  const CachedAllocator<Storage> storages_;
  std::shared_ptr<StoreCore> core_;
  int number_ = 0;
  int task_ = 0;
  std::shared_ptr<Pass> pass_;
  std::vector<Tensor> made_;
  std::vector<std::shared_ptr<Record>> records_;
};

}  // namespace ebbtide::test
