#include <ebbtide/nvme/measure_disk.h>

#include <algorithm>
#include <condition_variable>
#include <cstdlib>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

namespace ebbtide {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kItemBytes = size_t{4} << 20;
constexpr size_t kAtOnce = 8;
constexpr size_t kMostItems = 128;
constexpr size_t kPage = size_t{64} << 10;  // the largest that direct I/O may want

struct Free {
  void operator()(std::byte* memory) const noexcept { std::free(memory); }
};
using Buffer = std::unique_ptr<std::byte, Free>;

/// What completions and the measuring thread share. Completions may come after a failure has ended the measuring, so they
/// hold it too, and with it the memory that they touch.
struct Measured {
  std::mutex mutex;
  std::condition_variable changed;
  // Guarded by mutex.
  std::vector<Buffer> idle;
  size_t in_flight = 0;
  std::deque<SpilledItem> items;
  std::optional<Failure> failure;

  void note(std::optional<Failure> why) {  // REQUIRES: mutex held
    --in_flight;
    if (why && !failure) failure = std::move(why);
    changed.notify_all();
  }
  /// Null once something has failed.
  Buffer take() {
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return failure || !idle.empty(); });
    if (failure) return nullptr;
    Buffer buffer = std::move(idle.back());
    idle.pop_back();
    ++in_flight;
    return buffer;
  }
  void give_back(Buffer buffer, std::optional<Failure> why) {
    const std::lock_guard lock(mutex);
    idle.push_back(std::move(buffer));
    note(std::move(why));
  }
  void make_room() {
    SpilledItem oldest;  // dies without the lock
    const std::lock_guard lock(mutex);
    if (items.size() < kMostItems) return;
    oldest = std::move(items.front());
    items.pop_front();
  }
  std::optional<Failure> drain() {
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return in_flight == 0; });
    return failure;
  }
};

IoPiece piece_of(const Buffer& buffer) {
  return {buffer.get(), kItemBytes};
}

double speed(Bytes bytes, double seconds) {
  return seconds > 0 ? static_cast<double>(bytes.count()) / seconds : 0;
}

std::optional<Failure> failure_of(const Status& status) {
  if (status.ok()) return std::nullopt;
  return status.failure();
}

/// Nothing that compresses, for file systems that do.
bool fill(Measured& measured) {
  std::mt19937_64 random(1);
  for (size_t i = 0; i < kAtOnce; ++i) {
    Buffer buffer(static_cast<std::byte*>(std::aligned_alloc(kPage, kItemBytes)));
    if (!buffer) return false;
    auto* words = reinterpret_cast<uint64_t*>(buffer.get());
    std::generate(words, words + kItemBytes / sizeof *words, random);
    measured.idle.push_back(std::move(buffer));
  }
  return true;
}

std::optional<Failure> write_for(SpillTier& tier, const std::shared_ptr<Measured>& measured, Clock::time_point end) {
  for (uint64_t name = 1; name <= kAtOnce || Clock::now() < end; ++name) {
    measured->make_room();
    Buffer buffer = measured->take();
    if (!buffer) break;
    const IoPiece piece = piece_of(buffer);
    auto shared = std::make_shared<Buffer>(std::move(buffer));
    auto begun = tier.write(name, {piece}, [measured, shared](Result<SpilledItem> item) {
      std::optional<Failure> why;
      if (item.ok()) {
        const std::lock_guard lock(measured->mutex);
        measured->items.push_back(std::move(item).value());
      } else {
        why = std::move(item).failure();
      }
      measured->give_back(std::move(*shared), std::move(why));
    });
    if (!begun.ok()) {
      const bool some = name > kAtOnce;  // a full disk has shown what it does
      measured->give_back(std::move(*shared), some ? std::nullopt : std::optional(std::move(begun).failure()));
      break;
    }
  }
  return measured->drain();
}

std::optional<Failure> read_for(SpillTier& tier, const std::shared_ptr<Measured>& measured, Clock::time_point end) {
  const std::deque<SpilledItem>& items = measured->items;  // they stay as they are
  for (size_t i = 0; i < kAtOnce || Clock::now() < end; ++i) {
    Buffer buffer = measured->take();
    if (!buffer) break;
    const IoPiece piece = piece_of(buffer);
    auto shared = std::make_shared<Buffer>(std::move(buffer));
    (void)tier.read(
        items[i % items.size()], {piece}, SpillTier::Priority::kPrefetch,
        [measured, shared](const Status& status) { measured->give_back(std::move(*shared), failure_of(status)); });
  }
  return measured->drain();
}

}  // namespace

Result<DiskSpeed> measure_disk(SpillTier& tier, std::chrono::nanoseconds each_way) {
  const auto measured = std::make_shared<Measured>();
  if (!fill(*measured)) return Failure{FailureCode::kOverCapacity, 0, "There is no memory to measure a disk with."};
  const SpillStats before = tier.stats();
  if (auto failure = write_for(tier, measured, Clock::now() + each_way)) return *std::move(failure);
  const SpillStats written = tier.stats();
  if (auto failure = read_for(tier, measured, Clock::now() + each_way)) return *std::move(failure);
  const SpillStats read = tier.stats();
  return DiskSpeed{speed(written.written - before.written, written.write_busy_s - before.write_busy_s),
                   speed(read.read - written.read, read.read_busy_s - written.read_busy_s)};
}

}  // namespace ebbtide
