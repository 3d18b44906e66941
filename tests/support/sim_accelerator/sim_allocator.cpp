#include "tests/support/sim_accelerator/sim_allocator.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <set>
#include <unordered_map>

#include "tests/support/sim_accelerator/sim_accelerator.h"
#include "tests/support/sim_accelerator/sim_device.h"

namespace ebbtide::test {
namespace {

constexpr size_t kGranularity = 512;

struct Block {
  std::shared_ptr<SimDevice> device;
  std::shared_ptr<std::byte> memory;
  size_t bytes = 0;
  StreamId stream{};
  std::set<StreamId> users;  // recordStream
  bool apart = false;
};

/// What lives, by address: the deleter gets no more than that, as CUDA's does.
struct Blocks {
  std::mutex mutex;
  std::unordered_map<const void*, Block> live;

  static Blocks& instance() {
    static auto* blocks = new Blocks;
    return *blocks;
  }
};

void give_back(SimDevice& device, FencedMemory memory) {
  memory.memory.reset();
  const std::lock_guard lock(device.mutex);
  device.allocated.decrease(memory.bytes);
  if (!memory.apart) device.others.decrease(memory.bytes);
}

/// Gives back fenced memory whose users are done. The allocator looks and waits as an agent of its own: what it sees
/// puts its memory in order, not what the program does.
void give_back_fenced(SimDevice& device, bool wait) {
  const ChaosDevice::AgentScope as_allocator(*device.chaos, "allocator");
  std::vector<FencedMemory> fenced;
  {
    const std::lock_guard lock(device.mutex);
    fenced.swap(device.fenced);
  }
  const auto done = [&](const FencedMemory& memory) {
    return std::ranges::all_of(memory.fences, [&](const EventPtr& fence) {
      if (wait && !device.chaos->synchronize(fence)) return false;
      const Result<bool> passed = device.chaos->passed(fence);
      return passed.ok() && passed.value();
    });
  };
  const auto pending = std::stable_partition(fenced.begin(), fenced.end(), done);
  for (auto it = fenced.begin(); it != pending; ++it) give_back(device, std::move(*it));
  const std::lock_guard lock(device.mutex);
  device.fenced.insert(device.fenced.end(), std::make_move_iterator(pending), std::make_move_iterator(fenced.end()));
}

void delete_block(void* data) {
  Blocks& blocks = Blocks::instance();
  Block block;
  {
    const std::lock_guard lock(blocks.mutex);
    block = std::move(blocks.live.extract(data).mapped());
  }
  FencedMemory fenced{std::move(block.memory), block.bytes, block.apart, {}};
  for (const StreamId user : block.users)
    if (auto event = block.device->chaos->record(user)) fenced.fences.push_back(std::move(event).value());
  if (fenced.fences.empty()) return give_back(*block.device, std::move(fenced));
  const std::lock_guard lock(block.device->mutex);
  block.device->fenced.push_back(std::move(fenced));
}

class SimAllocator final : public c10::DeviceAllocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    const std::shared_ptr<SimDevice> device = sim_device(current_sim_device());
    const c10::Device torch_device(kSimType, device->index);
    if (bytes == 0) return {nullptr, nullptr, &delete_block, torch_device};
    const size_t size = (bytes + kGranularity - 1) / kGranularity * kGranularity;
    const StreamId stream = chaos_stream(*device, current_sim_stream(device->index));
    give_back_fenced(*device, /*wait=*/false);
    auto memory = device->chaos->allocate(size, stream, "tensor");
    if (!memory.ok() && memory.failure().code == FailureCode::kOverCapacity) {
      give_back_fenced(*device, /*wait=*/true);
      memory = device->chaos->allocate(size, stream, "tensor");
      const std::lock_guard lock(device->mutex);
      ++device->retries;
      device->refusals += memory.ok() ? 0 : 1;
    }
    TORCH_CHECK_WITH(OutOfMemoryError, memory.ok() || memory.failure().code != FailureCode::kOverCapacity,
                     "sim out of memory. Tried to allocate ", size, " bytes on ", torch_device, ", where ",
                     device->chaos->live_bytes().count(), " are in use.");
    Block block{device, checked(std::move(memory)), size, stream};
    void* const data = block.memory.get();
    {
      const std::lock_guard lock(device->mutex);
      device->allocated.increase(size);
      device->others.increase(size);
    }
    Blocks& blocks = Blocks::instance();
    const std::lock_guard lock(blocks.mutex);
    blocks.live.emplace(data, std::move(block));
    return {data, data, &delete_block, torch_device};
  }

  void recordStream(const c10::DataPtr& data, c10::Stream stream) override {
    Blocks& blocks = Blocks::instance();
    const std::lock_guard lock(blocks.mutex);
    // As CUDA's, which lets pass what another allocator made.
    const auto it = data.get_deleter() == &delete_block ? blocks.live.find(data.get()) : blocks.live.end();
    if (it == blocks.live.end()) return;
    const StreamId user = chaos_stream(*it->second.device, stream);
    if (user != it->second.stream) it->second.users.insert(user);
  }

  c10::DeleterFnPtr raw_deleter() const override { return &delete_block; }

  void copy_data(void* to, const void* from, size_t bytes) const override {
    const std::shared_ptr<SimDevice> device = sim_device(current_sim_device());
    checked(device->chaos->launch(chaos_stream(*device, current_sim_stream(device->index)), "copy_data",
                                  {{from, bytes}}, {{to, bytes}}, [to, from, bytes] { std::memcpy(to, from, bytes); }));
  }

  bool initialized() override { return true; }
  void emptyCache(c10::MempoolId_t) override {
    for (c10::DeviceIndex i = 0; i < SimAccelerator::kDevices; ++i) give_back_fenced(*sim_device(i), /*wait=*/true);
  }

  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(c10::DeviceIndex index) override {
    const std::shared_ptr<SimDevice> device = sim_device(index);
    const std::lock_guard lock(device->mutex);
    c10::CachingDeviceAllocator::DeviceStats stats;
    constexpr auto kAll = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
    stats.allocated_bytes[kAll] = stats.reserved_bytes[kAll] = device->allocated;
    stats.num_alloc_retries = device->retries;
    stats.num_ooms = device->refusals;
    return stats;
  }
  void resetAccumulatedStats(c10::DeviceIndex index) override {
    const std::shared_ptr<SimDevice> device = sim_device(index);
    const std::lock_guard lock(device->mutex);
    device->allocated.reset_accumulated();
  }
  void resetPeakStats(c10::DeviceIndex index) override {
    const std::shared_ptr<SimDevice> device = sim_device(index);
    const std::lock_guard lock(device->mutex);
    device->allocated.reset_peak();
    device->others.reset_peak();
  }
  std::pair<size_t, size_t> getMemoryInfo(c10::DeviceIndex index) override {
    const ebbtide::DeviceMemory memory = checked(sim_device(index)->chaos->memory());
    return {static_cast<size_t>(memory.free.count()), static_cast<size_t>(memory.total.count())};
  }
};

}  // namespace

void sim_set_apart(const c10::DataPtr& data) {
  Blocks& blocks = Blocks::instance();
  const std::lock_guard lock(blocks.mutex);
  const auto it = blocks.live.find(data.get());
  if (it == blocks.live.end() || std::exchange(it->second.apart, true)) return;
  const std::lock_guard device_lock(it->second.device->mutex);
  it->second.device->others.decrease(it->second.bytes);
}

c10::DeviceAllocator& sim_allocator() {
  static auto* allocator = new SimAllocator;
  return *allocator;
}

}  // namespace ebbtide::test
