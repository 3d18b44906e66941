// A spill tier that moves bytes when it is told to, for nvme_bench.py. Arguments: BYTES, "checksum" or "plain", folders.
// A word a line on stdin, an answer of one line of JSON each.
//
//   write        all items are dropped, and written anew
//   read         all items are read
//   idle, load   the latency of demand reads, alone and while writes wait for their turn; after a write
#include <ebbtide/nvme/spill_tier.h>
#include <ebbtide/pinned_pool/pool.h>

#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <iostream>
#include <memory>
#include <semaphore>
#include <string>
#include <utility>
#include <vector>

namespace {

using namespace ebbtide;
using Clock = std::chrono::steady_clock;

constexpr size_t kItemBytes = size_t{16} << 20;
constexpr size_t kFootprint = size_t{256} << 20;  // of memory, as fio's 256 buffers of 1 MiB
constexpr size_t kUrgentBytes = size_t{1} << 20;
constexpr int kUrgentReads = 100;

[[noreturn]] void die(const std::string& why) {
  std::fprintf(stderr, "nvme_bench: %s\n", why.c_str());
  std::exit(2);
}
template <class T>
T must(Result<T> result) {
  if (!result.ok()) die(result.failure().message);
  return std::move(result).value();
}

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}
/// Of all threads of this process, the kernel's for it included.
double cpu_seconds() {
  rusage usage{};
  if (::getrusage(RUSAGE_SELF, &usage) != 0) std::abort();
  const auto seconds = [](timeval time) {
    return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

/// In no pattern that a disk could make smaller.
void fill(std::byte* data, size_t bytes) {
  auto* words = reinterpret_cast<uint64_t*>(data);
  uint64_t state = 1;
  for (size_t i = 0; i < bytes / sizeof *words; ++i)
    words[i] = state = state * 6364136223846793005u + 1442695040888963407u;
}

class Bench {
 public:
  Bench(size_t bytes, SpillOptions options) : items_(bytes / kItemBytes) {
    options.budget = Bytes(static_cast<int64_t>(bytes + 2 * kFootprint + 4 * kUrgentBytes));
    options.reserve = Bytes(0);
    tier_ = must(SpillTier::open(std::move(options)));
    pool_ = must(PinnedPool::create(
        {.capacity = MiB(512), .slab_bytes = MiB(2), .watcher = tier_->watcher(), .keep_spare = false}));
    block_ = must(pool_->acquire({.bytes = Bytes(kFootprint + kUrgentBytes), .contiguous = true}));
    memory_ = block_.chunks()[0].data;
    urgent_memory_ = memory_ + kFootprint;
    fill(memory_, kFootprint + kUrgentBytes);
  }

  void write() {
    for (SpilledItem& item : items_) item = {};
    timed([this](size_t index) { start_write(index, items_[index]); });
  }
  void read() {
    timed([this](size_t index) {
      tier_->read(items_[index], piece(index), SpillTier::Priority::kPrefetch, [this, index](Status status) {
        must(std::move(status));
        places_[index % kPlaces].release();
      });
    });
  }
  /// With `load`, as many bytes wait to be written as there is memory, all the time.
  void latency(bool load) {
    std::vector<double> seconds;
    SpilledItem urgent = write_urgent();
    std::vector<SpilledItem> written(kPlaces);
    while (static_cast<int>(seconds.size()) < kUrgentReads) {
      for (size_t place = 0; load && place < kPlaces; ++place) {
        if (places_[place].try_acquire()) start_write(place, written[place]);
      }
      std::binary_semaphore done(0);
      const auto begin = Clock::now();
      tier_->read(urgent, {{urgent_memory_, kUrgentBytes}}, SpillTier::Priority::kDemand, [&done](Status status) {
        must(std::move(status));
        done.release();
      });
      done.acquire();
      seconds.push_back(seconds_since(begin));
    }
    wait_for_all();
    std::ranges::sort(seconds);
    std::printf("{\"median\": %.9g, \"p95\": %.9g}\n", seconds[kUrgentReads / 2], seconds[kUrgentReads * 95 / 100]);
    std::fflush(stdout);
  }

 private:
  static constexpr size_t kPlaces = kFootprint / kItemBytes;
  struct Free : std::binary_semaphore {
    Free() : std::binary_semaphore(1) {}
  };

  std::vector<IoPiece> piece(size_t index) const { return {{memory_ + index % kPlaces * kItemBytes, kItemBytes}}; }
  /// REQUIRES: its place was acquired. `item` stays until it is free again.
  void start_write(size_t index, SpilledItem& item) {
    must(tier_->write(index, piece(index), [this, index, &item](Result<SpilledItem> result) {
      item = must(std::move(result));
      places_[index % kPlaces].release();
    }));
  }
  SpilledItem write_urgent() {
    SpilledItem urgent;
    std::binary_semaphore done(0);
    must(tier_->write(1'000'000, {{urgent_memory_, kUrgentBytes}}, [&](Result<SpilledItem> item) {
      urgent = must(std::move(item));
      done.release();
    }));
    done.acquire();
    return urgent;
  }
  void wait_for_all() {
    for (auto& place : places_) {
      place.acquire();
      place.release();
    }
  }
  void timed(const std::function<void(size_t)>& start) {
    const double cpu = cpu_seconds();
    const auto begin = Clock::now();
    for (size_t index = 0; index < items_.size(); ++index) {
      places_[index % kPlaces].acquire();
      start(index);
    }
    wait_for_all();
    const double seconds = seconds_since(begin);
    const double used = cpu_seconds() - cpu;
    std::printf("{\"seconds\": %.9g, \"cpu_seconds\": %.9g}\n", seconds, used);
    std::fflush(stdout);
  }

  std::unique_ptr<PinnedPool> pool_;
  Block block_;
  std::byte* memory_ = nullptr;
  std::byte* urgent_memory_ = nullptr;
  std::vector<Free> places_ = std::vector<Free>(kPlaces);  // of memory: whether no transfer uses it
  std::vector<SpilledItem> items_;
  std::unique_ptr<SpillTier> tier_;
};

}  // namespace

int main(int count, char** arguments) {
  if (count < 4) die("usage: nvme_bench BYTES checksum|plain FOLDER...");
  const size_t bytes = std::strtoull(arguments[1], nullptr, 10);
  if (bytes < kFootprint) die("at least 256 MiB are needed");
  SpillOptions options;
  options.checksum = arguments[2] == std::string("checksum");
  options.folders.assign(arguments + 3, arguments + count);
  Bench bench(bytes, std::move(options));
  std::printf("{}\n");
  std::fflush(stdout);
  for (std::string word; std::getline(std::cin, word);) {
    if (word == "write")
      bench.write();
    else if (word == "read")
      bench.read();
    else if (word == "idle" || word == "load")
      bench.latency(word == "load");
    else
      die("unknown word '" + word + "'");
  }
  return 0;
}
