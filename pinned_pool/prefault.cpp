#include <ebbtide/pinned_pool/prefault.h>

#include <ebbtide/pinned_pool/page.h>

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <mutex>
#include <optional>
#include <string>
#include <system_error>
#include <thread>
#include <utility>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23  // Linux 5.14; older C libraries do not name it
#endif

namespace ebbtide::pinned_pool {
namespace {

using Clock = std::chrono::steady_clock;

/// The kernel clears about 10 GiB/s a thread; beyond four its memory is the limit.
constexpr unsigned kMostThreads = 4;

bool kernel_gives_huge_pages() {
  std::ifstream file("/sys/kernel/mm/transparent_hugepage/enabled");
  std::string setting;
  return std::getline(file, setting) && setting.find("[never]") == std::string::npos;
}

unsigned cores_of_this_thread() {
  cpu_set_t set;
  CPU_ZERO(&set);
  // More cores than a cpu_set_t holds: then there are enough.
  return ::sched_getaffinity(0, sizeof set, &set) == 0 ? static_cast<unsigned>(CPU_COUNT(&set)) : kMostThreads;
}

/// Errors: kOverCapacity.
Status populate(std::byte* data, size_t bytes) {
  while (::madvise(data, bytes, MADV_POPULATE_WRITE) != 0) {
    const int error = errno;
    if (error == EINTR || error == EAGAIN) continue;
    if (error == ENOMEM || error == EFAULT || error == EHWPOISON) {
      return Failure{FailureCode::kOverCapacity, error,
                     "the kernel has no pages for host memory: " + std::string(std::strerror(error))};
    }
    // An older kernel, or a sandbox that refuses it.
    for (size_t offset = 0; offset < bytes; offset += page_bytes())
      *reinterpret_cast<volatile std::byte*>(data + offset) = std::byte{0};
    break;
  }
  return success();
}

/// Pieces that threads take one after the other.
class Pieces {
 public:
  explicit Pieces(const Prefault& wanted)
      : wanted_(wanted),
        huge_pages_(::madvise(wanted.data, wanted.bytes, MADV_HUGEPAGE) == 0 && kernel_gives_huge_pages()) {}

  void work() {
    for (size_t offset; (offset = next_.fetch_add(kPrefaultPiece, std::memory_order_relaxed)) < wanted_.bytes;) {
      if (wanted_.cancelled != nullptr && wanted_.cancelled->load(std::memory_order_relaxed))
        return stop(Failure{FailureCode::kCancelled, 0, "the pool is closing"});
      const auto start = Clock::now();
      if (Status status = populate(wanted_.data + offset, std::min(kPrefaultPiece, wanted_.bytes - offset)); !status)
        return stop(std::move(status).failure());
      if (Clock::now() - start > wanted_.crawling) use_small_pages();
    }
  }

  Result<bool> result() && {
    if (failure_) return *std::move(failure_);
    return huge_pages_;
  }

 private:
  void stop(Failure failure) {
    next_.store(wanted_.bytes, std::memory_order_relaxed);
    const std::lock_guard lock(mutex_);
    if (!failure_) failure_ = std::move(failure);
  }
  /// For what no thread has taken yet.
  void use_small_pages() {
    const std::lock_guard lock(mutex_);
    const size_t from = next_.load(std::memory_order_relaxed);
    if (!huge_pages_ || from >= wanted_.bytes) return;
    huge_pages_ = ::madvise(wanted_.data + from, wanted_.bytes - from, MADV_NOHUGEPAGE) != 0;
  }

  const Prefault& wanted_;
  std::atomic<size_t> next_ = 0;
  std::mutex mutex_;  // guards what follows
  bool huge_pages_;
  std::optional<Failure> failure_;
};

}  // namespace

Result<bool> prefault(const Prefault& wanted) {
  Pieces pieces(wanted);
  const size_t most = (wanted.bytes + kPrefaultPiece - 1) / kPrefaultPiece;
  const unsigned threads = wanted.threads != 0 ? wanted.threads : std::min(kMostThreads, cores_of_this_thread());
  std::array<std::thread, kMostThreads> helpers;
  // Signals are the program's: none may be delivered on these threads.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  try {
    for (size_t i = 1; i < std::min<size_t>({threads, most, helpers.size()}); ++i)
      helpers[i] = std::thread([&pieces] { pieces.work(); });
  } catch (const std::system_error&) {
    // No thread to be had: those that are do all.
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  pieces.work();
  for (std::thread& helper : helpers) {
    if (helper.joinable()) helper.join();
  }
  return std::move(pieces).result();
}

}  // namespace ebbtide::pinned_pool
