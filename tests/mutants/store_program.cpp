#include <ebbtide/store/error.h>
#include <ebbtide/store/store_core.h>
#include <ebbtide/transfer/cuda_device.h>

#include <algorithm>
#include <deque>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "tests/mutants/left_out.h"
#include "tests/mutants/programs.h"
#include "tests/mutants/simulated_disk.h"
#include "tests/mutants/world.h"
#include "tests/store/fake_storage.h"
#include "tests/support/chaos_device.h"
#include "tests/support/fake_cuda_api.h"

namespace ebbtide::mutants {
namespace {

using test::ChaosDevice;
using test::ChaosOptions;

/// A CPU tensor, whose end the detector is told of.
class HostStorage final : public DeviceStorage {
 public:
  explicit HostStorage(std::shared_ptr<test::Memory> memory) : memory_(std::move(memory)) {}
  explicit HostStorage(std::shared_ptr<ReturnedMemory> returned) : returned_(std::move(returned)) {}
  std::byte* data() const noexcept override { return memory_ ? memory_->data() : returned_->data(); }
  Bytes bytes() const noexcept override {
    return memory_ ? Bytes(static_cast<int64_t>(memory_->bytes())) : returned_->bytes();
  }
  int64_t references() const noexcept override { return memory_ ? memory_.use_count() : 1; }
  bool plain() const noexcept override { return true; }
  const void* identity() const noexcept override { return data(); }

 private:
  std::shared_ptr<test::Memory> memory_;
  std::shared_ptr<ReturnedMemory> returned_;
};

/// A tensor of the device, whose end the mutant's watch is told of.
class WatchedTensor {
 public:
  WatchedTensor(std::shared_ptr<std::byte> memory, size_t bytes, StreamId stream)
      : memory_(std::move(memory)), bytes_(bytes), stream_(stream) {}
  ~WatchedTensor() {
    if (World::now() != nullptr) World::now()->storage_ends(memory_.get(), stream_);
  }
  WatchedTensor(const WatchedTensor&) = delete;
  WatchedTensor& operator=(const WatchedTensor&) = delete;
  std::byte* data() const noexcept { return memory_.get(); }
  size_t bytes() const noexcept { return bytes_; }
  uint32_t version = 0;

 private:
  std::shared_ptr<std::byte> memory_;
  size_t bytes_;
  StreamId stream_;
};
using DeviceTensor = std::shared_ptr<WatchedTensor>;

class TensorStorage final : public DeviceStorage {
 public:
  explicit TensorStorage(DeviceTensor tensor) : tensor_(std::move(tensor)) {}
  std::byte* data() const noexcept override { return tensor_->data(); }
  Bytes bytes() const noexcept override { return Bytes(static_cast<int64_t>(tensor_->bytes())); }
  int64_t references() const noexcept override { return tensor_.use_count(); }
  bool plain() const noexcept override { return true; }
  const void* identity() const noexcept override { return tensor_.get(); }

 private:
  DeviceTensor tensor_;
};

/// A tensor that is computed from others.
class Redo final : public Recipe {
 public:
  Redo(std::vector<std::shared_ptr<Record>> inputs, size_t bytes)
      : Recipe("redo", std::move(inputs), Bytes(0), Bytes(static_cast<int64_t>(bytes)), Bytes(0)) {}
  bool inputs_unchanged() const noexcept override { return true; }
};

class Allocator final : public DeviceAllocator {
 public:
  explicit Allocator(ChaosDevice& device) : device_(device) {}
  Result<std::shared_ptr<DeviceStorage>> allocate(Bytes bytes, StreamId stream) override {
    const auto size = static_cast<size_t>(bytes.count());
    auto memory = device_.allocate(size, stream, "returned tensor");
    if (!memory.ok()) return memory.failure();
    return std::shared_ptr<DeviceStorage>(
        std::make_shared<TensorStorage>(std::make_shared<WatchedTensor>(std::move(memory).value(), size, stream)));
  }

 private:
  ChaosDevice& device_;
};

class StoreProgram {
 public:
  StoreProgram(const std::string& program, const std::string& left_out, uint64_t seed) : random_(seed) {
    const ChaosOptions chaos{.seed = seed, .pace = pace(), .moves_bytes = false, .orders_allocations = true};
    if (program == "cuda store")
      driver_ = std::make_shared<test::FakeCudaApi>(std::vector<ChaosOptions>{chaos});
    else
      own_ = std::make_shared<ChaosDevice>(chaos);
    device_ = driver_ ? &driver_->device() : own_.get();
    world_.emplace(*device_, left_out, seed);
    if (driver_)
      world_->recorded = [this](const void* handle) {
        return driver_->recorded(static_cast<CudaEvent>(const_cast<void*>(handle)));
      };
    world_->cap = one_of({MiB(64), KiB(256)});
    Options options;
    options.device_budget = one_of({Bytes(0), KiB(128), KiB(300)});
    options.host_budget = one_of({MiB(2.5), MiB(2.5), MiB(8)});
    options.min_bytes = KiB(4);
    options.on_full = OnFull::kKeep;
    if (chance(80) || program == "host store") options.spill_to = {"simulated"};
    look_ = one_of({5u, 30u, 80u});
    host_share_ = options.spill_to.empty() ? 0 : one_of({5u, 15u, 60u});
    other_share_ = one_of({5u, 20u, 50u});
    recipe_share_ = one_of({0u, 30u, 80u});
    core_ = StoreCore::open(options);
    core_->set_warning_handler([](const std::string&) {});
    if (program == "host store") {
      host_share_ = 100;
    } else {
      std::shared_ptr<Device> on = own_;
      if (driver_) on = CudaDevice::open(driver_, 0).value();
      number_ = core_->add_device(on, std::make_shared<Allocator>(*device_), {.own_thread = false});
    }
    compute_ = device_->make_stream("compute");
    other_ = device_->make_stream("other");
    world_->add_actor([] { (void)disk_turn(); });
    world_->add_actor([this] {  // what the link thread does
      const ChaosDevice::AgentScope link(*device_, "link thread");
      core_->pump();
    });
  }

  Outcome run() {
    std::string error;
    try {
      for (int step = 0; step < 5; ++step) {
        live_.push_back(forward());
        if (chance(33) && live_.size() < 3) continue;  // two passes at once
        backward_of_the_oldest();
      }
      while (!live_.empty()) backward_of_the_oldest();
    } catch (const Error& told) {  // the device refused what makes no sense
      error = told.what();
      live_.clear();
    }
    device_->run_all();  // puts nothing in order
    core_->pump();
    core_->scope_ended(nullptr);
    core_->close();
    world_->let_actors_go();
    core_.reset();
    run_disks_dry();
    Outcome outcome{world_->executed(), device_->races()};
    if (!error.empty()) outcome.caught.insert(error);
    for (const std::string& misuse : driver_ ? driver_->misuse() : device_->misuse()) outcome.caught.insert(misuse);
    world_.reset();
    return outcome;
  }

 private:
  struct Tensor {  // one that was saved
    std::shared_ptr<Record> record;
    size_t bytes = 0;
    bool of_host = false;
  };
  struct Live {
    std::shared_ptr<Pass> pass;
    std::vector<Tensor> saved;
    EventPtr produced;  // all of it
    int task = 0;
    bool began = false;
  };

  bool chance(unsigned in_100) { return random_() % 100 < in_100; }
  template <class T>
  T one_of(std::initializer_list<T> these) {
    return these.begin()[random_() % these.size()];
  }
  std::optional<test::Pace> pace() {
    return one_of<std::optional<test::Pace>>({std::nullopt, test::Pace::kLazy, test::Pace::kRandom});
  }
  /// What follows on `later` comes after what is enqueued on `earlier`.
  void order(StreamId earlier, StreamId later) { (void)device_->wait(later, device_->record(earlier).value()); }
  void others_act() {
    while (chance(look_)) world_->turn();
  }

  Live forward() {
    Live live;
    live.task = ++tasks_;
    std::vector<DeviceTensor> elsewhere;
    for (auto i = 8 + random_() % 30; i > 0; --i) {
      if (chance(host_share_)) {
        save_of_host(live);
      } else {
        const DeviceTensor tensor = save(live);
        if (chance(15)) elsewhere.push_back(tensor);
      }
      if (chance(15)) elsewhere.clear();
      others_act();
    }
    elsewhere.clear();
    live.produced = device_->record(compute_).value();
    core_->scope_ended(live.pass);
    return live;
  }

  DeviceTensor save(Live& live) {
    const size_t bytes = (1 + random_() % 12) * (16 << 10);
    auto memory = device_->allocate(bytes, compute_, "tensor").value();
    std::byte* const data = memory.get();
    const auto tensor = std::make_shared<WatchedTensor>(std::move(memory), bytes, compute_);
    const size_t first = chance(20) ? bytes / 2 : bytes;
    (void)device_->launch(compute_, "produce", {}, {{data, first}}, {});
    pack(live, tensor, first);
    if (first == bytes && chance(recipe_share_)) offer_recipe(live, bytes);
    if (first < bytes) {  // saved as it grows
      (void)device_->launch(compute_, "produce the rest", {}, {{data + first, bytes - first}}, {});
      pack(live, tensor, bytes);
    }
    return tensor;
  }

  void pack(Live& live, const DeviceTensor& tensor, size_t end) {
    const Bytes size(static_cast<int64_t>(end));
    const StoreCore::View view{.storage = tensor.get(),
                               .version_counter = &tensor->version,
                               .version = tensor->version,
                               .begin = Bytes(0),
                               .end = size,
                               .footprint = Bytes(static_cast<int64_t>(tensor->bytes())),
                               .device = number_,
                               .stream = compute_};
    if (chance(10)) {  // the device has no event now
      const int skip = static_cast<int>(random_() % 3);
      device_->fail(chance(50) ? ChaosDevice::Call::kRecord : ChaosDevice::Call::kWait, chance(50) ? 0 : skip,
                    {FailureCode::kOverCapacity, 0, "not now"});
    }
    if (driver_ && chance(70)) driver_->fail("event_query", /*skip=*/0, CudaResult::kOutOfMemory);
    live.saved.push_back(
        {core_->pack(live.pass, view, [&] { return std::make_shared<TensorStorage>(tensor); }).record, end});
    device_->forget_faults();
    if (driver_) driver_->forget_faults();
  }

  void offer_recipe(Live& live, size_t bytes) {
    const Tensor& input = live.saved[random_() % live.saved.size()];
    const Tensor& made = live.saved.back();
    if (!input.of_host && input.record != made.record)
      core_->offer_recipe(*made.record, std::make_shared<Redo>(std::vector{input.record}, bytes));
  }

  void save_of_host(Live& live) {
    const size_t bytes = 8192 + random_() % (64 << 10);
    memory_begins();
    const std::shared_ptr<test::Memory> memory(new test::Memory(bytes), [](test::Memory* it) {
      memory_ends(it->data(), it->bytes());
      delete it;
    });
    device_->host_write(memory->data(), bytes, "program writes");
    StoreCore::View view = test::whole(*memory);
    view.storage = memory->data();
    live.saved.push_back({core_->pack(live.pass, view, [&] { return std::make_shared<HostStorage>(memory); }).record,
                          bytes, /*of_host=*/true});
  }

  void use(Live& live, const Tensor& tensor) {
    live.began |= core_->task_began(*tensor.record, live.task);
    if (tensor.of_host) {
      StoreCore::Unpacked unpacked = core_->unpack(*tensor.record);
      if (!unpacked.storage)
        unpacked.storage =
            core_->adopt(*tensor.record, unpacked.memory, std::make_shared<HostStorage>(unpacked.memory));
      device_->host_read(unpacked.storage->data() - unpacked.origin.count(), tensor.bytes, "program reads");
      return;
    }
    const StreamId stream = chance(other_share_) ? other_ : compute_;
    {
      const StoreCore::Unpacked unpacked = unpack(*tensor.record, stream);
      (void)device_->launch(stream, "use", {{unpacked.storage->data() - unpacked.origin.count(), tensor.bytes}}, {},
                            {});
      used(unpacked, stream);
    }
    others_act();
  }

  /// Whoever frees it, on whichever of the two, comes after what `stream` did with it.
  void used(const StoreCore::Unpacked& unpacked, StreamId stream) {
    if (stream != compute_) order(stream, compute_);
    if (unpacked.of_another_stream && stream == compute_) order(compute_, other_);
  }

  StoreCore::Unpacked unpack(Record& record, StreamId stream) {
    StoreCore::Unpacked unpacked = core_->unpack(record, stream);
    if (unpacked.storage) return unpacked;
    const Recipe& recipe = *unpacked.recipe;
    const auto input = unpack(*recipe.inputs().front(), stream);
    const auto bytes = static_cast<size_t>((recipe.end() - recipe.begin()).count());
    auto made = std::make_shared<TensorStorage>(
        std::make_shared<WatchedTensor>(device_->allocate(bytes, stream, "redone tensor").value(), bytes, stream));
    (void)device_->launch(stream, "redo", {{input.storage->data(), 1024}}, {{made->data(), bytes}}, {});
    used(input, stream);
    unpacked.storage = core_->redone(record, made, stream, /*seconds=*/0);
    unpacked.origin = recipe.begin();
    return unpacked;
  }

  void backward_of_the_oldest() {
    Live live = std::move(live_.front());
    live_.pop_front();
    (void)device_->wait(other_, live.produced);
    // The engine's own thread: the program starts it, and waits for its end.
    const test::VectorClock begin = device_->host_moment();
    test::VectorClock end;
    {
      const ChaosDevice::AgentScope engine(*device_, "engine");
      device_->host_after(begin);
      backward(live);
      end = device_->host_moment();
    }
    device_->host_after(end);
  }

  void backward(Live& live) {
    const auto kind = random_() % 7;  // 0, 6: dropped
    if (kind == 1)
      for (size_t i = live.saved.size(); i-- > 0;) use(live, live.saved[i]);  // a kept graph
    while (kind % 6 != 0 && !live.saved.empty()) {
      const size_t index = kind == 2 ? random_() % live.saved.size() : live.saved.size() - 1;
      use(live, live.saved[index]);
      live.saved.erase(live.saved.begin() + static_cast<std::ptrdiff_t>(index));
      if ((kind == 3 || kind == 4) && chance(6)) break;  // stops half-way
    }
    live.saved.clear();
    if (live.began) core_->task_ended(*live.pass, live.task);
  }

  std::mt19937_64 random_;
  std::shared_ptr<test::FakeCudaApi> driver_;
  std::shared_ptr<ChaosDevice> own_;
  ChaosDevice* device_ = nullptr;
  std::optional<World> world_;
  std::shared_ptr<StoreCore> core_;
  int number_ = 0;
  StreamId compute_{};
  StreamId other_{};
  unsigned look_ = 0, host_share_ = 0, other_share_ = 0, recipe_share_ = 0;  // in 100
  std::deque<Live> live_;
  int tasks_ = 0;
};

}  // namespace

Outcome run_store(const std::string& program, const std::string& left_out, uint64_t seed) {
  return StoreProgram(program, left_out, seed).run();
}

}  // namespace ebbtide::mutants
