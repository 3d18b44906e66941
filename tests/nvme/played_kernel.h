// The queues of a tier and the kernel and disks behind them, played by one thread from random numbers: what is short,
// late, refused, wrong or out of order is what the numbers say.
#pragma once

#include <ebbtide/nvme/tier_state.h>

#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

namespace ebbtide::nvme {

/// How often an attempt ends in which way: one in so many. 0: never.
struct Troubles {
  unsigned short_of_bytes = 0;  ///< any number of bytes, not only whole blocks
  unsigned again = 0;           ///< EAGAIN, EINTR, or nothing moved and no error
  unsigned device = 0;          ///< EIO, after some of the bytes
  unsigned full = 0;            ///< ENOSPC or EDQUOT of a write
  unsigned flipped = 0;         ///< of a read: one bit, on its way
};

/// Threads: one. It takes from the tier and ends, as a queue's own thread would.
class PlayedKernel {
 public:
  /// What a test may want to know of. All are to be set.
  struct Events {
    std::function<void(uint32_t lane, const IoRequest&)> taken;
    std::function<void(uint32_t lane, const IoRequest&, int error)> ending;
    std::function<void(const IoRequest&)> flipped;
  };

  PlayedKernel(std::mt19937_64& random, std::vector<std::vector<std::byte>>& disks) : random_(random), disks_(disks) {}

  QueueFactory factory() {
    return [this](const QueueOptions& options, std::shared_ptr<IoSource> source, std::string& why_not) {
      lanes_.push_back({std::move(source), options.length_alignment});
      why_not = "a test plays it";
      return StartedQueue(std::make_unique<Handle>());
    };
  }
  /// Takes one request of any lane. False: that lane has none, or enough.
  bool take() {
    const auto lane = static_cast<uint32_t>(random_() % lanes_.size());
    if (in_flight(lane) >= kMostInFlight) return false;
    IoRequest request;
    if (lanes_[lane].source->next(request) != IoSource::Next::kRequest) return false;
    flights_.push_back({lane, IoProgress(request, lanes_[lane].alignment)});
    events.taken(lane, request);
    return true;
  }
  /// Ends an attempt of any request in flight. False: there is none.
  bool end(const Troubles& troubles) {
    if (flights_.empty()) return false;
    const size_t index = random_() % flights_.size();
    Flight& flight = flights_[index];
    const IoRequest request = flight.progress.request();
    const uint32_t lane = flight.lane;
    if (flight.progress.goes_on(attempt(flight, troubles))) return true;
    const int error = flight.progress.error();
    std::swap(flights_[index], flights_.back());
    flights_.pop_back();
    events.ending(lane, request, error);
    lanes_[lane].source->completed(request, error);
    return true;
  }
  /// All lanes say that nothing will ever come again.
  bool finished() {
    IoRequest request;
    for (Lane& lane : lanes_)
      if (lane.source->next(request) != IoSource::Next::kFinished) return false;
    return true;
  }
  void let_go() { lanes_.clear(); }

  Events events;

 private:
  static constexpr size_t kMostInFlight = 6;  // a lane

  struct Handle final : IoQueue {
    void notify() noexcept override {}
    const char* name() const noexcept override { return "played"; }
  };
  struct Lane {
    std::shared_ptr<IoSource> source;
    size_t alignment;
  };
  struct Flight {
    uint32_t lane;
    IoProgress progress;
  };

  bool one_in(unsigned many) { return many != 0 && random_() % many == 0; }
  size_t in_flight(uint32_t lane) const {
    size_t count = 0;
    for (const Flight& flight : flights_) count += flight.lane == lane;
    return count;
  }
  int attempt(Flight& flight, const Troubles& troubles) {
    const IoProgress& progress = flight.progress;
    const bool write = progress.request().write;
    uint32_t bytes = progress.bytes();
    int answer = static_cast<int>(bytes);
    if (one_in(troubles.device)) {
      bytes = static_cast<uint32_t>(random_() % (bytes + 1));
      answer = -EIO;
    } else if (write && one_in(troubles.full)) {
      bytes = 0;
      answer = random_() % 2 ? -ENOSPC : -EDQUOT;
    } else if (one_in(troubles.again)) {
      bytes = 0;
      answer = std::array{-EAGAIN, -EINTR, 0}[random_() % 3];
    } else if (one_in(troubles.short_of_bytes)) {
      bytes = static_cast<uint32_t>(random_() % bytes);
      answer = static_cast<int>(bytes);
    }
    std::byte* const on_disk = disks_[flight.lane].data() + progress.offset();
    if (bytes == 0) return answer;
    if (write) {
      std::memcpy(on_disk, progress.data(), bytes);
    } else {
      std::memcpy(progress.data(), on_disk, bytes);
      if (one_in(troubles.flipped)) {
        progress.data()[random_() % bytes] ^= std::byte{1} << static_cast<int>(random_() % 8);
        events.flipped(progress.request());
      }
    }
    return answer;
  }

  std::mt19937_64& random_;
  std::vector<std::vector<std::byte>>& disks_;
  std::vector<Lane> lanes_;
  std::vector<Flight> flights_;
};

}  // namespace ebbtide::nvme
