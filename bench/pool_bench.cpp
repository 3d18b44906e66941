// What the pool of host memory costs, in bytes on recorded steps beside other ways to pool, and in time. Prints one row
// of JSON a line. Arguments: the traces (record_pool_traces.py says what is in them).
#include <ebbtide/pinned_pool/arena.h>
#include <ebbtide/pinned_pool/mlock_registrar.h>
#include <ebbtide/pinned_pool/page.h>
#include <ebbtide/pinned_pool/pool.h>
#include <ebbtide/pinned_pool/prefault.h>
#include <ebbtide/pinned_pool/slab.h>

#include <sys/mman.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "row_printer.h"

namespace {

using namespace ebbtide;
using pinned_pool::Arena;
using pinned_pool::Slab;

constexpr bench::RowPrinter rows{"pool"};

[[noreturn]] void die(const std::string& why) {
  std::fprintf(stderr, "pool_bench: %s\n", why.c_str());
  std::exit(1);
}
template <class T>
T must(Result<T> result) {
  if (!result.ok()) die(result.failure().message);
  return std::move(result).value();
}

double seconds_of(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}
double fastest_of(int rounds, const std::function<double()>& seconds) {
  double best = std::numeric_limits<double>::infinity();
  for (int i = 0; i < rounds; ++i) best = std::min(best, seconds());
  return best;
}

// ---- traces

struct Event {
  enum class What { kAcquire, kRelease, kStep } what;
  uint64_t id = 0;
  size_t bytes = 0;
};
struct Trace {
  std::string name;
  std::vector<Event> events;
  int steps = 0;
  size_t peak_live = 0;
};

/// Activations grow with the batch: the steps were recorded with a quarter of what fills a pool's slabs.
constexpr size_t kBatch = 4;

Trace finish(std::string name, std::vector<Event> events) {
  Trace trace{.name = std::move(name), .events = std::move(events)};
  std::map<uint64_t, size_t> live;
  size_t now = 0;
  for (const Event& event : trace.events) {
    switch (event.what) {
      case Event::What::kAcquire:
        live[event.id] = event.bytes;
        trace.peak_live = std::max(trace.peak_live, now += event.bytes);
        break;
      case Event::What::kRelease:
        now -= live.at(event.id);
        break;
      case Event::What::kStep:
        ++trace.steps;
    }
  }
  if (now != 0) die(trace.name + " does not end with everything released");
  return trace;
}

Trace read_trace(const std::filesystem::path& path) {
  std::ifstream file(path);
  std::vector<Event> events;
  for (char what; file >> what;) {
    Event event{Event::What::kStep};
    if (what == '+' && file >> event.id >> event.bytes) {
      event.what = Event::What::kAcquire;
      event.bytes *= kBatch;
    } else if (what == '-' && file >> event.id) {
      event.what = Event::What::kRelease;
    } else if (what != '=') {
      die(path.string() + " is not a trace");
    }
    events.push_back(event);
  }
  if (events.empty()) die(path.string() + " cannot be read, or is empty");
  return finish(path.stem(), std::move(events));
}

/// Sizes of 64 KiB to 64 MiB, evenly over their logarithms, released in any order.
Trace random_trace() {
  std::mt19937_64 random(1);
  std::vector<Event> events;
  std::vector<std::pair<uint64_t, size_t>> live;
  size_t now = 0;
  uint64_t id = 0;
  const auto release_one = [&] {
    std::swap(live[random() % live.size()], live.back());
    now -= live.back().second;
    events.push_back({Event::What::kRelease, live.back().first});
    live.pop_back();
  };
  for (int i = 0; i < 4000; ++i) {
    const auto bytes = static_cast<size_t>(std::exp2(std::uniform_real_distribution<>(16, 26)(random)));
    while (now + bytes > size_t{1} << 30) release_one();
    now += bytes;
    live.emplace_back(++id, bytes);
    events.push_back({Event::What::kAcquire, id, bytes});
  }
  while (!live.empty()) release_one();
  events.push_back({Event::What::kStep});
  return finish("random", std::move(events));
}

// ---- ways to pool: what each has mapped at its peak. What is mapped is never given back while the trace runs.

/// `Way`: acquire(bytes), which returns what release() takes back.
template <class Way>
void replay(const Trace& trace, Way& way) {
  std::map<uint64_t, decltype(way.acquire(0))> live;
  for (const Event& event : trace.events) {
    if (event.what == Event::What::kAcquire) {
      live.emplace(event.id, way.acquire(event.bytes));
    } else if (event.what == Event::What::kRelease) {
      way.release(std::move(live.extract(event.id).mapped()));
    }
  }
}

struct Chunked {
  PinnedPool& pool;
  Block acquire(size_t bytes) { return must(pool.acquire({.bytes = Bytes(static_cast<int64_t>(bytes))})); }
  void release(Block block) { block = Block(); }
};

/// Free pieces by the size that `round` makes of theirs.
struct BySize {
  std::function<size_t(size_t)> round;
  std::map<size_t, int> free = {};
  size_t mapped = 0;

  size_t acquire(size_t bytes) {
    const size_t size = round(bytes);
    if (free[size] > 0) {
      --free[size];
    } else {
      mapped += size;
    }
    return size;
  }
  void release(size_t size) { ++free[size]; }
};

/// The same arena, but each request whole.
class Unchunked {
 public:
  explicit Unchunked(size_t slab_bytes) : slab_bytes_(slab_bytes), arena_(must(Arena::create(slab_bytes))) {}
  std::byte* acquire(size_t bytes) {
    while (true) {
      if (const auto got = arena_->allocate((bytes + 4095) / 4096 * 4096)) return got->data;
      arena_->push({must(Slab::make({.bytes = slab_bytes_})), slabs_++});
    }
  }
  void release(std::byte* data) { arena_->deallocate(data); }
  size_t mapped() const { return slabs_ * slab_bytes_; }

 private:
  const size_t slab_bytes_;
  uint32_t slabs_ = 0;
  const std::unique_ptr<Arena> arena_;
};

void bytes_on(const Trace& trace, double limit) {
  const auto live = static_cast<double>(trace.peak_live);
  const auto say = [&](const char* way, size_t mapped) {
    rows.row(trace.name + ": mapped at peak, " + way, static_cast<double>(mapped) / live, "x live");
  };
  rows.row(trace.name + ": peak live", live / (1 << 30), "GiB");
  auto pool = must(PinnedPool::create({.capacity = GiB(2), .keep_spare = false}));
  constexpr size_t kSlab = size_t{128} << 20;  // by default, for such a capacity
  Chunked chunked{*pool};
  replay(trace, chunked);
  const PoolStats first = pool->stats();
  const auto mapped = static_cast<size_t>(first.peak_slab_bytes.count());
  say("ebbtide", mapped);
  rows.at_most(trace.name + ": mapped less one slab", static_cast<double>(mapped - kSlab) / live, "x live", limit);
  int steps = trace.steps;
  for (; steps < 1000; steps += trace.steps) replay(trace, chunked);
  rows.row(trace.name + ": growths after the first round, " + std::to_string(steps) + " steps",
           static_cast<double>(pool->stats().growths - first.growths), "", "== 0",
           pool->stats().growths == first.growths);
  const Bytes held = pool->stats().slab_bytes;
  const Bytes trimmed = pool->trim();
  rows.row(trace.name + ": returned by trim",
           100.0 * static_cast<double>(trimmed.count()) / static_cast<double>(held.count()), "%", "== 100",
           trimmed == held);
  pool.reset();

  {
    Unchunked unchunked(kSlab);
    replay(trace, unchunked);
    say("jemalloc, unchunked", unchunked.mapped());
  }
  BySize powers{[](size_t bytes) { return std::bit_ceil(bytes); }};
  replay(trace, powers);
  say("powers of two, cached", powers.mapped);
  BySize shapes{[](size_t bytes) { return bytes; }};
  replay(trace, shapes);
  say("by shape", shapes.mapped);
}

// ---- time

/// Of all threads: on a busy machine the wall clock tells of its other programs.
double cpu_seconds() {
  timespec now{};
  if (clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now) != 0) std::abort();
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

/// CPU seconds for one block that is acquired and released, with so many threads at it.
double lend(PinnedPool& pool, Bytes bytes, unsigned threads) {
  constexpr int kBlocks = 4000;
  std::atomic<bool> refused = false;
  const auto work = [&] {
    for (int i = 0; i < kBlocks; ++i)
      if (!pool.acquire({.bytes = bytes})) refused = true;
  };
  const double start = cpu_seconds();
  std::vector<std::thread> others;
  for (unsigned i = 1; i < threads; ++i) others.emplace_back(work);
  work();
  for (std::thread& other : others) other.join();
  if (refused) die("a block was refused");
  return (cpu_seconds() - start) / threads / kBlocks;
}

void time_of_lending() {
  auto pool = must(PinnedPool::create({.capacity = GiB(2), .slab_bytes = MiB(256), .keep_spare = false}));
  const Bytes chunk = MiB(32);
  {
    std::vector<Block> all;  // every slab is there before anything is timed
    for (int i = 0; i < 8 * 4; ++i) all.push_back(must(pool->acquire({.bytes = chunk})));
  }
  const double alone = fastest_of(49, [&] { return lend(*pool, chunk, 1); });
  const double together = fastest_of(49, [&] { return lend(*pool, chunk, 8); });
  rows.at_most("acquire and release 32 MiB, CPU time", 1e6 * alone, "us", 1.3);
  rows.row("acquire and release 128 MiB, 4 chunks, CPU time",
           1e6 * fastest_of(49, [&] { return lend(*pool, MiB(128), 1); }), "us");
  rows.at_most("acquire and release 32 MiB, 8 threads at once, CPU time", together / alone, "x alone", 4);
  const double by_hand = fastest_of(3, [&] {
    return seconds_of([&] {
      void* data = std::calloc(1, static_cast<size_t>(chunk.count()));
      if (data == nullptr || ::mlock(data, static_cast<size_t>(chunk.count())) != 0) die("mlock is refused here");
      (void)::munlock(data, static_cast<size_t>(chunk.count()));
      std::free(data);
    });
  });
  rows.row("malloc, mlock and free 32 MiB", 1e6 * by_hand, "us");
}

/// Milliseconds to have 1 GiB present and locked.
void time_of_growth() {
  constexpr size_t kBytes = size_t{1} << 30;
  MlockRegistrar mlock;
  const auto by_hand = [&](const std::function<void(std::byte*)>& make_present) {
    return [&, make_present] {
      std::byte* data = pinned_pool::map_aligned(kBytes);
      if (data == nullptr) die("no address space");
      const double seconds = seconds_of([&] {
        make_present(data);
        must(mlock.pin(data, kBytes));
      });
      if (::munmap(data, kBytes) != 0) die("munmap");
      return seconds;
    };
  };
  const auto advise = [](std::byte* data, int advice) {
    if (::madvise(data, kBytes, advice) != 0) die("this kernel does not know MADV " + std::to_string(advice));
  };
  constexpr int kPopulateWrite = 23;
  const auto populate_by = [&](unsigned threads) {
    return [&, threads](std::byte* data) {
      advise(data, MADV_HUGEPAGE);
      std::vector<std::thread> helpers;
      for (unsigned i = 0; i < threads; ++i) {
        helpers.emplace_back([=] {
          const size_t part = kBytes / threads;
          if (::madvise(data + i * part, part, kPopulateWrite) != 0) die("populating is refused");
        });
      }
      for (std::thread& helper : helpers) helper.join();
    };
  };
  struct Way {
    const char* name;
    std::function<double()> seconds;
    double best = std::numeric_limits<double>::infinity();
  };
  Way ours{"ebbtide", [&] {
             std::optional<Slab> slab;
             const double seconds =
                 seconds_of([&] { slab.emplace(must(Slab::make({.bytes = kBytes, .registrar = &mlock}))); });
             if (!slab->pageable_because().empty()) die(slab->pageable_because());
             return seconds;
           }};
  std::vector<Way> ways = {
      {"touch, small pages", by_hand([&](std::byte* data) {
         advise(data, MADV_NOHUGEPAGE);
         for (size_t i = 0; i < kBytes; i += pinned_pool::page_bytes())
           *reinterpret_cast<volatile std::byte*>(data + i) = {};
       })},
      {"populate, small pages", by_hand([&](std::byte* data) {
         advise(data, MADV_NOHUGEPAGE);
         advise(data, kPopulateWrite);
       })},
      {"populate, huge pages", by_hand(populate_by(1))},
      {"populate, huge pages, 2 threads", by_hand(populate_by(2))},
      {"populate, huge pages, 4 threads", by_hand(populate_by(4))},
  };
  for (int round = 0; round < 5; ++round) {  // in turn: what else the machine does meets all
    for (Way& way : ways) way.best = std::min(way.best, way.seconds());
    ours.best = std::min(ours.best, ours.seconds());
  }
  double best = std::numeric_limits<double>::infinity();
  for (const Way& way : ways) {
    rows.row(std::string("1 GiB present and locked: ") + way.name, 1e3 * way.best, "ms");
    best = std::min(best, way.best);
  }
  rows.row("1 GiB present and locked: ebbtide", 1e3 * ours.best, "ms");
  rows.at_most("1 GiB present and locked: ebbtide", ours.best / best, "x the best", 1.1);
}

}  // namespace

int main(int count, char** arguments) {
  for (int i = 1; i < count; ++i) bytes_on(read_trace(arguments[i]), 1.07);
  bytes_on(random_trace(), 1.25);
  time_of_lending();
  time_of_growth();
  return 0;
}
