// A framework's storage, without the framework.
#pragma once

#include <ebbtide/store/returned_memory.h>
#include <ebbtide/store/store_core.h>
#include <ebbtide/transfer/device_storage.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <random>
#include <utility>
#include <vector>

namespace ebbtide::test {

/// Memory at 64 modulo 4096, as torch's large tensors are. Copies share it, and `version` with it.
class Memory {
 public:
  explicit Memory(size_t bytes)
      : bytes_(bytes),
        base_(static_cast<std::byte*>(std::aligned_alloc(4096, (bytes + 64 + 4095) / 4096 * 4096)), std::free) {}
  std::byte* data() const { return base_.get() + 64; }
  size_t bytes() const { return bytes_; }
  long owners() const { return base_.use_count(); }
  const void* identity() const { return base_.get(); }
  uint32_t& version() const { return *version_; }
  const void* version_counter() const { return version_.get(); }

  void fill(uint64_t seed) const {
    std::mt19937_64 random(seed);
    for (size_t i = 0; i < bytes_; i += 8) {
      const uint64_t value = random();
      std::memcpy(data() + i, &value, std::min<size_t>(8, bytes_ - i));
    }
  }

 private:
  size_t bytes_;
  std::shared_ptr<std::byte> base_;
  std::shared_ptr<uint32_t> version_ = std::make_shared<uint32_t>(0);
};

class FakeStorage final : public DeviceStorage {
 public:
  explicit FakeStorage(Memory memory) : memory_(std::move(memory)) {}
  explicit FakeStorage(std::shared_ptr<ReturnedMemory> returned) : returned_(std::move(returned)) {
    returned_->hand_over();
  }

  std::byte* data() const noexcept override { return memory_ ? memory_->data() : returned_->data(); }
  Bytes bytes() const noexcept override {
    return memory_ ? Bytes(static_cast<int64_t>(memory_->bytes())) : returned_->bytes();
  }
  int64_t references() const noexcept override { return memory_ ? memory_->owners() : 1; }
  bool plain() const noexcept override { return true; }
  const void* identity() const noexcept override { return memory_ ? memory_->identity() : returned_->data(); }

 private:
  std::optional<Memory> memory_;
  std::shared_ptr<ReturnedMemory> returned_;
};

inline StoreCore::View whole(const Memory& memory) {
  const Bytes size(static_cast<int64_t>(memory.bytes()));
  return {.storage = memory.identity(),
          .version_counter = memory.version_counter(),
          .version = memory.version(),
          .begin = Bytes(0),
          .end = size,
          .footprint = size};
}

inline std::shared_ptr<Record> pack(StoreCore& core, std::shared_ptr<Pass>& pass, const Memory& memory) {
  return core.pack(pass, whole(memory), [&] { return std::make_shared<FakeStorage>(memory); }).record;
}

class FakeRecipe : public Recipe {
 public:
  FakeRecipe(std::vector<std::shared_ptr<Record>> inputs, Bytes begin, Bytes end)
      : Recipe("fake", std::move(inputs), begin, end, kOwnBytes) {}
  static constexpr Bytes kOwnBytes{24};
  virtual Memory run(StoreCore& core) const = 0;
};

/// What an unpack hook does: a storage, adopted where it came back, and redone where it must be, as if that took so long.
inline std::shared_ptr<FakeStorage> unpack(StoreCore& core, Record& record, double redo_s = 0.5) {
  StoreCore::Unpacked unpacked = core.unpack(record);
  if (unpacked.recipe) {
    auto made = std::make_shared<FakeStorage>(dynamic_cast<const FakeRecipe&>(*unpacked.recipe).run(core));
    return std::static_pointer_cast<FakeStorage>(core.redone(record, std::move(made), kHostStream, redo_s));
  }
  if (!unpacked.storage)
    unpacked.storage = core.adopt(record, unpacked.memory, std::make_shared<FakeStorage>(unpacked.memory));
  return std::static_pointer_cast<FakeStorage>(unpacked.storage);
}

inline std::vector<std::byte> copy(const Memory& memory) {
  return {memory.data(), memory.data() + memory.bytes()};
}
inline std::vector<std::byte> copy(const DeviceStorage& storage) {
  return {storage.data(), storage.data() + storage.bytes().count()};
}

}  // namespace ebbtide::test
