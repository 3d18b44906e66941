// What the tests of the NVMe tier share: folders, memory, waiting for completions, and a queue that a test plays by
// hand.
#pragma once

#include <ebbtide/nvme/io_queue.h>
#include <ebbtide/nvme/tier_state.h>
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <future>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "own_mounts.h"

namespace ebbtide::nvme {

/// An empty folder, removed with all that is in it.
class Folder {
 public:
  Folder() {
    std::string name = ::testing::TempDir() + "ebbtide-nvme-XXXXXX";
    if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("mkdtemp: " + std::string(std::strerror(errno)));
    path_ = name;
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  ~Folder() {
    if (mounted_) ::umount2(path_.c_str(), MNT_DETACH);
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  const std::string& path() const { return path_; }
  bool empty() const { return std::filesystem::is_empty(path_); }

  /// A tmpfs of this size over the folder. False: this process may not mount.
  bool mount_tmpfs(const std::string& size) { return mount("tmpfs", "size=" + size); }
  bool mount(const std::string& type, const std::string& options) {
    errno = mount_here(type, path_, type, options);
    return mounted_ = errno == 0;
  }

 private:
  std::string path_;
  bool mounted_ = false;
};

/// Memory at 512 bytes past a page: what direct I/O asks for here, and no more, as large tensors lie.
class Memory {
 public:
  explicit Memory(size_t bytes, uint64_t seed = 0) : bytes_(bytes) {
    base_.reset(static_cast<std::byte*>(std::aligned_alloc(4096, (bytes + 512 + 4095) / 4096 * 4096)));
    fill(seed);
  }
  void fill(uint64_t seed) {
    std::mt19937_64 random(seed);
    for (size_t i = 0; i < bytes_; i += 8) {
      const uint64_t word = random();
      std::memcpy(data() + i, &word, std::min<size_t>(8, bytes_ - i));
    }
  }
  std::byte* data() const { return base_.get() + 512; }
  std::byte* page() const { return base_.get(); }  ///< before data()
  size_t bytes() const { return bytes_; }
  std::vector<IoPiece> piece() const { return {{data(), bytes_}}; }
  /// Cut at these places.
  std::vector<IoPiece> pieces(const std::vector<size_t>& cuts) const {
    std::vector<IoPiece> result;
    size_t at = 0;
    for (size_t cut : cuts) {
      result.push_back({data() + at, cut - at});
      at = cut;
    }
    result.push_back({data() + at, bytes_ - at});
    return result;
  }
  bool operator==(const Memory& other) const {
    return bytes_ == other.bytes_ && std::memcmp(data(), other.data(), bytes_) == 0;
  }

 private:
  struct Free {
    void operator()(std::byte* memory) const { std::free(memory); }
  };
  size_t bytes_;
  std::unique_ptr<std::byte[], Free> base_;
};

/// A `done` and the future of what it is given.
template <class R>
class Promised {
 public:
  std::function<void(R)> done() {
    return [promise = promise_](R result) { promise->set_value(std::move(result)); };
  }
  R get() { return future_.get(); }
  bool ready() const { return future_.wait_for(std::chrono::seconds(0)) == std::future_status::ready; }

 private:
  std::shared_ptr<std::promise<R>> promise_ = std::make_shared<std::promise<R>>();
  std::future<R> future_ = promise_->get_future();
};
using Written = Promised<Result<SpilledItem>>;
using ReadBack = Promised<Status>;

template <class Tier>
SpilledItem write_now(Tier& tier, uint64_t name, const std::vector<IoPiece>& pieces) {
  Written written;
  auto id = tier.write(name, pieces, written.done());
  if (!id) throw std::runtime_error(id.failure().message);
  auto item = written.get();
  if (!item) throw std::runtime_error(item.failure().message);
  return std::move(item).value();
}

inline Status read_now(SpillTier& tier, const SpilledItem& item, const std::vector<IoPiece>& pieces) {
  ReadBack back;
  tier.read(item, pieces, SpillTier::Priority::kDemand, back.done());
  return back.get();
}

/// A queue that does nothing by itself: the test takes requests from the tier, and says when and how each ends.
/// Threads: the test's, which plays the I/O thread.
class HandQueue {
 public:
  QueueFactory factory() {
    return [this](const QueueOptions& options, std::shared_ptr<IoSource> source, std::string& why_not) {
      fds_.push_back(options.fd);
      sources_.push_back(std::move(source));
      why_not = "a test plays it";
      return StartedQueue(std::make_unique<Handle>());
    };
  }
  /// Takes one request. False: there is none now.
  bool take(size_t lane = 0) {
    IoRequest request;
    last_ = sources_[lane]->next(request);
    if (last_ != IoSource::Next::kRequest) return false;
    taken.push_back({lane, request});
    return true;
  }
  /// Takes all there are.
  void take_all() {
    for (size_t lane = 0; lane < sources_.size(); ++lane) {
      while (take(lane)) {
      }
    }
  }
  /// Ends the `index`-th request taken: with `error`, or by really doing it.
  void end(size_t index, int error = 0) {
    const auto [lane, request] = taken[index];
    taken.erase(taken.begin() + static_cast<long>(index));
    const auto offset = static_cast<off_t>(request.offset);
    if (error == 0) {
      const ssize_t moved = request.write ? ::pwrite(fds_[lane], request.data, request.bytes, offset)
                                          : ::pread(fds_[lane], request.data, request.bytes, offset);
      error = moved == static_cast<ssize_t>(request.bytes) ? 0 : errno;
    }
    sources_[lane]->completed(request, error);
  }
  void run() {
    for (take_all(); !taken.empty(); take_all()) end(0);
  }
  bool finished(size_t lane = 0) {
    take(lane);
    return last_ == IoSource::Next::kFinished;
  }
  /// The threads of the queues end.
  void let_go() { sources_.clear(); }
  int fd(size_t lane = 0) const { return fds_[lane]; }

  struct Taken {
    size_t lane;
    IoRequest request;
  };
  std::vector<Taken> taken;

 private:
  struct Handle final : IoQueue {
    void notify() noexcept override {}
    const char* name() const noexcept override { return "by hand"; }
  };
  std::vector<int> fds_;
  std::vector<std::shared_ptr<IoSource>> sources_;
  IoSource::Next last_ = IoSource::Next::kNothing;
};

inline std::shared_ptr<TierState> open_by_hand(HandQueue& queue, const SpillOptions& options) {
  auto state = TierState::open(options, queue.factory());
  if (!state) throw std::runtime_error(state.failure().message);
  return std::move(state).value();
}

}  // namespace ebbtide::nvme
