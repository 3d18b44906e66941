// A training loop without a framework: tensors on a pretend accelerator, saved into a store and read again.
#pragma once

#include <ebbtide/store/store_core.h>
#include <ebbtide/transfer/cuda_device.h>
#include <ebbtide/transfer/device_allocator.h>

#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>

#include "tests/support/chaos_device.h"
#include "tests/support/fake_cuda_api.h"
#include "tests/support/mutant_device.h"
#include "tests/support/pattern.h"

namespace ebbtide::test {

/// What a framework calls a storage: memory of the device, freed on its stream with the last reference.
struct DeviceMemoryImpl {
  std::shared_ptr<std::byte> memory;
  size_t bytes = 0;
  uint32_t version = 0;
};
using DeviceTensor = std::shared_ptr<DeviceMemoryImpl>;

class ChaosStorageWatch final : public StorageWatch {
 public:
  explicit ChaosStorageWatch(const DeviceTensor& tensor) : tensor_(tensor) {}
  bool alive() const noexcept override { return !tensor_.expired(); }

 private:
  const std::weak_ptr<DeviceMemoryImpl> tensor_;
};

class ChaosStorage final : public DeviceStorage {
 public:
  explicit ChaosStorage(DeviceTensor tensor) : tensor_(std::move(tensor)) {}
  std::byte* data() const noexcept override { return tensor_->memory.get(); }
  Bytes bytes() const noexcept override { return Bytes(static_cast<int64_t>(tensor_->bytes)); }
  int64_t references() const noexcept override { return tensor_.use_count(); }
  bool plain() const noexcept override { return true; }
  const void* identity() const noexcept override { return tensor_.get(); }
  std::unique_ptr<StorageWatch> watch() const override { return std::make_unique<ChaosStorageWatch>(tensor_); }
  const DeviceTensor& tensor() const noexcept { return tensor_; }

 private:
  DeviceTensor tensor_;
};

class ChaosAllocator final : public DeviceAllocator {
 public:
  explicit ChaosAllocator(ChaosDevice& device) : device_(device) {}
  Result<std::shared_ptr<DeviceStorage>> allocate(Bytes bytes, StreamId stream) override {
    auto memory = device_.allocate(static_cast<size_t>(bytes.count()), stream, "returned tensor");
    if (!memory.ok()) return memory.failure();
    return std::shared_ptr<DeviceStorage>(std::make_shared<ChaosStorage>(std::make_shared<DeviceMemoryImpl>(
        DeviceMemoryImpl{std::move(memory).value(), static_cast<size_t>(bytes.count()), 0})));
  }

 private:
  ChaosDevice& device_;
};

/// One device in a store, and what a framework does on it.
class DeviceTrainer {
 public:
  /// What a view touches of its tensor.
  struct Part {
    size_t begin = 0;
    size_t bytes = 0;  ///< of one row
    size_t pitch = 0;
    size_t rows = 1;

    size_t end() const { return begin + (rows - 1) * pitch + bytes; }
    std::vector<Span> spans(const std::byte* tensor) const {
      std::vector<Span> spans;
      for (size_t row = 0; row < rows; ++row) spans.push_back({tensor + begin + row * pitch, bytes});
      return spans;
    }
  };
  struct Saved {
    std::shared_ptr<Record> record;
    uint64_t seed = 0;
    Part part;
  };

  /// REQUIRES: whole words.
  static void fill(std::byte* to, uint64_t seed, size_t bytes) {
    write_pattern(to, bytes, static_cast<uint32_t>(seed));
  }

  DeviceTrainer(StoreCore& core, ChaosOptions chaos, StoreCore::DeviceOptions how,
                MutantDevice::Mutation mutation = MutantDevice::Mutation::kNone)
      : core_(core),
        device_(std::make_shared<ChaosDevice>(chaos)),
        mutant_(std::make_shared<MutantDevice>(device_, mutation)),
        compute_(device_->make_stream("compute")) {
    number_ = core_.add_device(mutant_, std::make_shared<ChaosAllocator>(*device_), how);
  }
  /// On one device of a pretend CUDA driver, by CudaDevice's own code.
  DeviceTrainer(StoreCore& core, const std::shared_ptr<FakeCudaApi>& driver, int ordinal, StoreCore::DeviceOptions how)
      : core_(core), device_(driver, &driver->device(ordinal)), compute_(device_->make_stream("compute")) {
    number_ =
        core_.add_device(CudaDevice::open(driver, ordinal).value(), std::make_shared<ChaosAllocator>(*device_), how);
  }

  ChaosDevice& device() { return *device_; }
  /// Where the last copy out went. REQUIRES: not on a pretend CUDA driver.
  std::byte* host_memory() const { return mutant_->host_memory(); }
  StreamId compute() const { return compute_; }
  int number() const { return number_; }

  DeviceTensor make(uint64_t seed, size_t bytes) {
    DeviceTensor tensor = allocate(bytes);
    produce(*tensor, seed);
    return tensor;
  }
  /// With nothing in it yet, and the computation that fills it.
  DeviceTensor allocate(size_t bytes) {
    auto memory = device_->allocate(bytes, compute_, "tensor").value();
    return std::make_shared<DeviceMemoryImpl>(DeviceMemoryImpl{std::move(memory), bytes, 0});
  }
  void produce(const DeviceMemoryImpl& tensor, uint64_t seed) {
    std::byte* to = tensor.memory.get();
    (void)device_->launch(compute_, "produce", {}, {{to, tensor.bytes}},
                          [to, seed, bytes = tensor.bytes] { fill(to, seed, bytes); });
  }

  Saved pack(std::shared_ptr<Pass>& pass, const DeviceTensor& tensor, uint64_t seed) {
    return pack(pass, tensor, seed, {.bytes = tensor->bytes});
  }
  Saved pack(std::shared_ptr<Pass>& pass, const DeviceTensor& tensor, uint64_t seed, const Part& part,
             bool written_later = false) {
    const auto bytes = [](size_t count) { return Bytes(static_cast<int64_t>(count)); };
    StoreCore::View view{.storage = tensor.get(),
                         .version_counter = &tensor->version,
                         .version = tensor->version,
                         .begin = bytes(part.begin),
                         .end = bytes(part.end()),
                         .footprint = bytes(tensor->bytes),
                         .device = number_,
                         .stream = compute_,
                         .written_later = written_later};
    if (part.rows > 1) view.rows = {bytes(part.bytes), bytes(part.pitch), static_cast<int64_t>(part.rows)};
    return {core_.pack(pass, view, [&] { return std::make_shared<ChaosStorage>(tensor); }).record, seed, part};
  }
  Saved save(std::shared_ptr<Pass>& pass, uint64_t seed, size_t bytes) { return pack(pass, make(seed, bytes), seed); }

  /// Unpacks, and reads all of it in a computation on `stream`.
  std::shared_ptr<DeviceStorage> use(const Saved& saved, StreamId stream) {
    const StoreCore::Unpacked unpacked = core_.unpack(*saved.record, stream);
    const std::byte* data = unpacked.storage->data() - unpacked.origin.count();
    (void)device_->launch(stream, "use", saved.part.spans(data), {},
                          [data, seed = static_cast<uint32_t>(saved.seed), part = saved.part, wrong = wrong_] {
                            bool right = true;
                            for (size_t row = 0; row < part.rows; ++row) {
                              const size_t at = part.begin + row * part.pitch;
                              right &= count_wrong(data + at, part.bytes, seed, at / 4) == 0;
                            }
                            *wrong += right ? 0 : 1;
                          });
    ++uses_;
    return unpacked.storage;
  }
  std::shared_ptr<DeviceStorage> use(const Saved& saved) { return use(saved, compute_); }

  /// What follows on `later` comes after what is enqueued on `earlier`.
  void order(StreamId earlier, StreamId later) { (void)device_->wait(later, device_->record(earlier).value()); }

  /// All streams run dry, and the store sees it.
  void drain() {
    for (int i = 0; i < 200; ++i) {
      device_->run_all();
      core_.pump();
    }
    core_.scope_ended(nullptr);
  }

  int wrong() const { return *wrong_; }
  int uses() const { return uses_; }

 private:
  StoreCore& core_;
  const std::shared_ptr<ChaosDevice> device_;
  const std::shared_ptr<MutantDevice> mutant_;
  const StreamId compute_;
  int number_ = 0;
  int uses_ = 0;
  const std::shared_ptr<std::atomic<int>> wrong_ = std::make_shared<std::atomic<int>>(0);
};

class TemporaryFolder {
 public:
  explicit TemporaryFolder(const std::string& name)
      : path_(std::filesystem::temp_directory_path() / (name + std::to_string(::getpid()))) {
    std::filesystem::create_directories(path_);
  }
  ~TemporaryFolder() { std::filesystem::remove_all(path_); }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  std::string path() const { return path_.string(); }

 private:
  std::filesystem::path path_;
};

}  // namespace ebbtide::test
