// What moving a tensor costs: the host's time and allocations for one that leaves and comes back, over a driver that
// does nothing; and, where there is a GPU, how near the lanes come to a bare loop of copies. Prints one row of JSON a
// line.
#include "tests/support/count_allocations.h"

#include <ebbtide/pinned_pool/pool.h>
#include <ebbtide/transfer/copy_lane.h>
#include <ebbtide/transfer/cuda_device.h>
#include <ebbtide/transfer/measure_link.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "row_printer.h"
#include "tests/gpu/gpu_driver.h"
#include "tests/support/noop_cuda_api.h"
#include "tests/support/noop_training.h"

namespace {

using namespace ebbtide;

constexpr bench::RowPrinter rows{"transfer"};

[[noreturn]] void die(const Failure& failure) {
  std::fprintf(stderr, "transfer_bench: %s\n", failure.message.c_str());
  std::exit(1);
}
template <class T>
T must(Result<T> result) {
  if (!result.ok()) die(result.failure());
  return std::move(result).value();
}
void must_drive(CudaResult result, const char* doing) {
  if (result != CudaResult::kSuccess)
    die({FailureCode::kIo, 0, std::string(doing) + ": CUDA error " + std::to_string(static_cast<int>(result)) + "."});
}

double seconds_of(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// The host's cost.

constexpr int kTensors = 20000;  // a round
constexpr int kRounds = 9;       // the fastest counts
constexpr double kMostMicroseconds = 4;

/// What the store does with the device and the lanes for a one-chunk tensor, in the order of copy_lane.h.
class Mover {
 public:
  void leave() {
    EventPtr packed = must(device_->record(compute_));
    const CopyJobPtr job = out_.submit({.chunks = {{host_, tensor_, kBytes}},
                                        .after = std::move(packed),
                                        .keepalive = keepalive_,
                                        .done = [this](const Status& status) { copied_ += status.ok(); }});
    out_.pump();
    must(device_->wait(compute_, job->event()));
  }
  void come_back() {
    EventPtr allocated = must(device_->record(compute_));
    const CopyJobPtr job = in_.submit({.chunks = {{tensor_, host_, kBytes}},
                                       .after = std::move(allocated),
                                       .keepalive = keepalive_,
                                       .done = [this](const Status& status) { copied_ += status.ok(); }});
    must(device_->wait(compute_, must(in_.demand(job))));
    in_.pump();
  }
  /// One job of kSmallChunks of 64 KiB, which fill the lane.
  void leave_in_small_chunks() {
    CopyRequest request{.keepalive = keepalive_, .done = [this](const Status& status) { copied_ += status.ok(); }};
    for (int i = 0; i < kSmallChunks; ++i) request.chunks.push_back({host_, tensor_, size_t{64} << 10});
    out_.submit(std::move(request));
    out_.pump();
  }
  static constexpr int kSmallChunks = 512;
  /// The same without lanes: what CudaDevice itself costs.
  void leave_bare() { move_bare(Direction::kOut, host_, tensor_); }
  void come_back_bare() { move_bare(Direction::kIn, tensor_, host_); }

 private:
  static constexpr size_t kBytes = 1 << 20;

  void move_bare(Direction direction, void* to, const void* from) {
    const StreamId stream = device_->copy_stream(direction);
    must(device_->wait(stream, must(device_->record(compute_))));
    must(device_->copy(to, from, kBytes, direction, stream));
    const EventPtr copied = must(device_->record(stream));
    must(device_->wait(compute_, copied));
    must(device_->passed(copied));
  }

  const std::shared_ptr<CudaDevice> device_ = must(CudaDevice::open(std::make_shared<test::NoopCudaApi>(), 0));
  const StreamId compute_{0x1000};
  void* const host_ = reinterpret_cast<void*>(0x10000000);  // never touched
  void* const tensor_ = reinterpret_cast<void*>(0x20000000);
  const SteadyClock clock_;
  const std::shared_ptr<LinkLoad> link_ = std::make_shared<LinkLoad>();
  const std::shared_ptr<void> keepalive_ = std::make_shared<int>(0);
  CopyLane out_{*device_, clock_, Direction::kOut, {.link = link_}};
  CopyLane in_{*device_, clock_, Direction::kIn, {.link = link_}};
  int64_t copied_ = 0;
};

void measure_host() {
  Mover mover;
  const auto measure = [&](const std::string& name, void (Mover::*move)()) {
    for (int i = 0; i < kTensors; ++i) (mover.*move)();
    double best = std::numeric_limits<double>::infinity();
    const int64_t before = test::allocations;
    for (int round = 0; round < kRounds; ++round)
      best = std::min(best, seconds_of([&] {
                        for (int i = 0; i < kTensors; ++i) (mover.*move)();
                      }));
    const double microseconds = best / kTensors * 1e6;
    const double allocations = static_cast<double>(test::allocations - before) / (kTensors * kRounds);
    rows.row("host." + name, microseconds, "us", "<= 4", microseconds <= kMostMicroseconds);
    rows.row("host." + name + ".allocations", allocations, "", "<= 0", allocations == 0);
  };
  measure("device_offload", &Mover::leave_bare);
  measure("device_fetch", &Mover::come_back_bare);
  measure("lane_offload", &Mover::leave);
  measure("lane_fetch", &Mover::come_back);

  double best = std::numeric_limits<double>::infinity();
  for (int round = 0; round < 200; ++round) best = std::min(best, seconds_of([&] { mover.leave_in_small_chunks(); }));
  rows.row("host.lane_small_chunk", best / Mover::kSmallChunks * 1e6, "us");
}

/// The same with all that the store does around it: a pack and an unpack, records, host memory, budgets.
void measure_store() {
  constexpr size_t kPassTensors = 200;
  constexpr int kPasses = 200;
  test::NoopTraining training(kPassTensors);
  double offload = std::numeric_limits<double>::infinity(), fetch = offload;
  int64_t offload_allocations = 0, fetch_allocations = 0;
  for (int pass = -2; pass < kPasses; ++pass) {  // the first two warm up
    const int64_t before = test::allocations;
    const double forward = seconds_of([&] { training.forward(); });
    const int64_t between = test::allocations;
    const double backward = seconds_of([&] { training.backward(); });
    if (pass < 0) continue;
    offload = std::min(offload, forward);
    fetch = std::min(fetch, backward);
    offload_allocations += between - before;
    fetch_allocations += test::allocations - between;
  }
  const auto print = [&](const std::string& name, double seconds, int64_t allocations) {
    const double microseconds = seconds / kPassTensors * 1e6;
    rows.row("host." + name, microseconds, "us", "<= 4", microseconds <= kMostMicroseconds);
    rows.row("host." + name + ".allocations", static_cast<double>(allocations) / kPasses, "a pass");
  };
  print("store_offload", offload, offload_allocations);
  print("store_fetch", fetch, fetch_allocations);
}

// The link.

constexpr size_t kPoolBytes = size_t{512} << 20;  // each way
constexpr size_t kMostJobBytes = size_t{32} << 20;
constexpr int kLinkRounds = 5;
constexpr double kLeastShare = 0.95;

class PinnedByDevice final : public HostRegistrar {
 public:
  explicit PinnedByDevice(std::shared_ptr<Device> device) : device_(std::move(device)) {}
  Status pin(void* data, size_t bytes) noexcept override { return device_->register_host(data, bytes); }
  void unpin(void* data, size_t bytes) noexcept override { device_->unregister_host(data, bytes); }

 private:
  const std::shared_ptr<Device> device_;
};

/// One direction's host and device memory, and the same copies by a bare loop and by a lane.
class Way {
 public:
  Way(const test::GpuDriver& driver, CudaApi& api, CudaDevice& device, PinnedPool& pool, Direction direction,
      std::shared_ptr<LinkLoad> link)
      : api_(api),
        direction_(direction),
        block_(must(pool.acquire({.bytes = Bytes(kPoolBytes)}))),
        lane_(device, clock_, direction, {.link = std::move(link)}) {
    must_drive(driver.memory_allocate(&memory_, kPoolBytes), "Allocating device memory");
    must_drive(api_.stream_create_with_priority(&stream_, kCudaStreamNonBlocking, 0), "Making a stream");
    must_drive(api_.event_create(&event_, kCudaEventDisableTiming), "Making an event");
  }

  void cut(size_t chunk_bytes, size_t total_bytes) {
    chunks_.clear();
    size_t at = 0;
    for (const Chunk& chunk : block_.chunks())
      for (size_t in_chunk = 0; in_chunk + chunk_bytes <= chunk.bytes && at + chunk_bytes <= total_bytes;
           in_chunk += chunk_bytes, at += chunk_bytes) {
        void* const host = chunk.data + in_chunk;
        void* const device = reinterpret_cast<void*>(memory_ + at);
        chunks_.push_back(direction_ == Direction::kOut ? CopyChunk{host, device, chunk_bytes}
                                                        : CopyChunk{device, host, chunk_bytes});
      }
  }
  size_t bytes() const { return chunks_.empty() ? 0 : chunks_.size() * chunks_.front().bytes; }
  size_t chunks() const { return chunks_.size(); }

  void enqueue_bare(size_t index) {
    const CopyChunk& chunk = chunks_[index];
    must_drive(
        direction_ == Direction::kOut
            ? api_.memcpy_device_to_host_async(chunk.to, reinterpret_cast<uintptr_t>(chunk.from), chunk.bytes, stream_)
            : api_.memcpy_host_to_device_async(reinterpret_cast<uintptr_t>(chunk.to), chunk.from, chunk.bytes, stream_),
        "Copying");
  }
  void finish_bare() {
    must_drive(api_.event_record(event_, stream_), "Recording");
    must_drive(api_.event_synchronize(event_), "Waiting");
  }
  /// The next job; false: there was none, and the next call begins anew.
  bool submit() {
    if (submitted_ == chunks_.size()) {
      submitted_ = 0;
      return false;
    }
    CopyRequest request;
    for (size_t bytes = 0; submitted_ < chunks_.size() && bytes + chunks_[submitted_].bytes <= kMostJobBytes;
         ++submitted_) {
      request.chunks.push_back(chunks_[submitted_]);
      bytes += chunks_[submitted_].bytes;
    }
    request.done = [](const Status& status) {
      if (!status.ok()) die(status.failure());
    };
    lane_.submit(std::move(request));
    return true;
  }
  bool pump() {
    lane_.pump();
    return lane_.idle();
  }

  static constexpr size_t kScratchBytes = size_t{16} << 20;  // of one chunk of the block
  std::byte* host() const { return block_.chunks().front().data; }
  std::byte* memory() const { return reinterpret_cast<std::byte*>(memory_); }

 private:
  CudaApi& api_;
  const Direction direction_;
  const Block block_;
  const SteadyClock clock_;
  CopyLane lane_;
  CudaAddress memory_ = 0;  // ends with the process, as do stream and event
  CudaStream stream_ = nullptr;
  CudaEvent event_ = nullptr;
  std::vector<CopyChunk> chunks_;
  size_t submitted_ = 0;
};

/// What lanes start from, in as much time as a program gives to it.
void print_calibration(CudaDevice& device, const Way& out, const Way& in) {
  const LinkScratch scratch{out.host(), in.host(), out.memory(), in.memory(), Way::kScratchBytes};
  std::optional<LinkBandwidth> link;
  const double seconds = seconds_of([&] { link = must(measure_link(device, SteadyClock(), scratch)); });
  rows.row("link.measured.seconds", seconds, "s", "<= 0.1", seconds <= 0.1);
  for (const auto& [size, bytes] : {std::pair("64KiB", KiB(64)), {"1MiB", MiB(1)}, {"16MiB", MiB(16)}}) {
    for (const auto& [way, bandwidth] : {std::pair("out", &link->out), {"in", &link->in}}) {
      for (const auto& [use, is] : {std::pair("alone", LinkUse::kAlone), {"duplex", LinkUse::kDuplex}}) {
        const std::string name = std::string("link.measured.") + way + "." + use + "." + size;
        rows.row(name, bandwidth->bytes_per_second(bytes, is).value_or(0) / 1e9, "GB/s");
      }
    }
  }
}

void measure_lanes(const test::GpuDriver& driver) {
  const std::shared_ptr<CudaApi> api = must(CudaApi::of_process());
  CudaContextHandle context = nullptr;
  must_drive(api->primary_context_retain(&context, 0), "Retaining the context");
  must_drive(api->context_set_current(context), "Entering the context");
  const std::shared_ptr<CudaDevice> device = must(CudaDevice::open(api, 0));
  std::fprintf(stderr, "transfer: on %s\n", device->name().c_str());
  const auto pool = must(PinnedPool::create({.capacity = Bytes(2 * kPoolBytes + (64 << 20)),
                                             .registrar = std::make_shared<PinnedByDevice>(device),
                                             .keep_spare = false,
                                             .survives_fork = false}));
  const auto link = std::make_shared<LinkLoad>();
  Way out(driver, *api, *device, *pool, Direction::kOut, link), in(driver, *api, *device, *pool, Direction::kIn, link);
  if (!pool->stats().pinned) die({FailureCode::kUnsupported, 0, "Not pinned: " + pool->stats().pageable_because});

  print_calibration(*device, out, in);
  struct Case {
    const char* name;
    std::vector<Way*> ways;
  };
  const Case cases[] = {{"out", {&out}}, {"in", {&in}}, {"duplex", {&out, &in}}};
  struct Size {
    const char* name;
    size_t chunk_bytes, total_bytes;
  };
  const Size sizes[] = {{"64KiB", size_t{64} << 10, size_t{128} << 20},
                        {"1MiB", size_t{1} << 20, kPoolBytes},
                        {"32MiB", size_t{32} << 20, kPoolBytes}};
  for (const Size& size : sizes) {
    for (const Case& it : cases) {
      size_t bytes = 0;
      for (Way* way : it.ways) {
        way->cut(size.chunk_bytes, size.total_bytes);
        bytes += way->bytes();
      }
      const auto bare = [&] {
        for (size_t i = 0; i < it.ways.front()->chunks(); ++i)
          for (Way* way : it.ways) way->enqueue_bare(i);
        for (Way* way : it.ways) way->finish_bare();
      };
      const auto lanes = [&] {
        for (bool more = true; more;) {  // the ways in turns, as above
          more = false;
          for (Way* way : it.ways) more |= way->submit();
        }
        for (bool idle = false; !idle;) {
          idle = true;
          for (Way* way : it.ways) idle &= way->pump();
        }
      };
      bare();
      lanes();
      double best_bare = std::numeric_limits<double>::infinity(), best_lanes = best_bare;
      for (int round = 0; round < kLinkRounds; ++round) {  // in turns, so that both meet the same machine
        best_bare = std::min(best_bare, seconds_of(bare));
        best_lanes = std::min(best_lanes, seconds_of(lanes));
      }
      const std::string name = std::string("link.") + it.name + "." + size.name;
      rows.row(name + ".bare", static_cast<double>(bytes) / best_bare / 1e9, "GB/s");
      rows.row(name + ".lane", static_cast<double>(bytes) / best_lanes / 1e9, "GB/s");
      const double share = best_bare / best_lanes;
      rows.row(name + ".share", share, "x", ">= 0.95", share >= kLeastShare);
    }
  }
}

}  // namespace

int main() {
  measure_host();
  measure_store();
  const auto driver = test::GpuDriver::open();
  if (driver.ok()) {
    measure_lanes(driver.value());
  } else {
    std::fprintf(stderr, "transfer: the link is not measured: %s\n", driver.failure().message.c_str());
  }
  return 0;
}
