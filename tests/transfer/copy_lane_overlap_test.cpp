// What happens to a job while a thread is in the middle of enqueuing it.
#include <ebbtide/transfer/copy_lane.h>

#include <gtest/gtest.h>

#include <atomic>
#include <cstddef>
#include <functional>
#include <thread>
#include <utility>
#include <vector>

namespace ebbtide {
namespace {

/// Everything is done at once, and `on_copy` is called before each copy.
class HookedDevice final : public Device {
 public:
  std::function<void()> on_copy;
  std::atomic<int> copies{0};
  std::atomic<bool> pass{true};

  bool is_host() const noexcept override { return false; }
  std::string name() const override { return "hooked"; }
  std::string pci_address() const override { return {}; }
  Result<DeviceMemory> memory() override { return DeviceMemory{}; }
  StreamId copy_stream(Direction) noexcept override { return StreamId{1}; }
  Result<bool> capturing(StreamId) override { return false; }
  Result<EventPtr> record(StreamId) override { return std::make_shared<Event>(); }
  Status wait(StreamId, const EventPtr&) override { return success(); }
  Result<bool> passed(const EventPtr&) override { return pass.load(); }
  Status copy(void*, const void*, size_t, Direction, StreamId) override {
    ++copies;
    if (on_copy) std::exchange(on_copy, nullptr)();
    return success();
  }
  Status copy_rows(void* to, const void* from, const CopyRows& rows, Direction direction, StreamId stream) override {
    return copy(to, from, rows.row_bytes * rows.count, direction, stream);
  }
  Status synchronize(const EventPtr&) override { return success(); }
  Status register_host(void*, size_t) override { return success(); }
  void unregister_host(void*, size_t) noexcept override {}
};

constexpr CopyChunk kChunk{nullptr, nullptr, 1};

class CopyLaneOverlapTest : public testing::Test {
 protected:
  /// A job that waits in the queue, behind one that fills the lane until it is let pass.
  CopyJobPtr queued(size_t chunks) {
    device_.pass = false;
    lane_.submit({.chunks = {kChunk, kChunk}});
    CopyRequest request{.done = [this](const Status&) { ++done_; }};
    for (size_t i = 0; i < chunks; ++i) request.chunks.push_back(kChunk);
    return lane_.submit(std::move(request));
  }
  HookedDevice device_;
  SteadyClock clock_;
  CopyLane lane_{device_, clock_, Direction::kIn, {.max_in_flight = Bytes(2)}};
  int done_ = 0;
};

TEST_F(CopyLaneOverlapTest, CancelStopsAJobAfterThePieceBeingEnqueued) {
  const CopyJobPtr job = queued(5);
  device_.on_copy = [&] { lane_.cancel(job); };
  device_.pass = true;
  lane_.pump();
  lane_.pump();
  EXPECT_EQ(device_.copies, 2 + 2);
  EXPECT_EQ(job->state(), CopyState::kCancelled);
  EXPECT_EQ(done_, 1);
}

TEST_F(CopyLaneOverlapTest, CancelIsTooLateForTheLastPiece) {
  const CopyJobPtr job = queued(2);
  device_.on_copy = [&] { lane_.cancel(job); };
  device_.pass = true;
  lane_.pump();
  lane_.pump();
  EXPECT_EQ(job->state(), CopyState::kPassed);
  EXPECT_EQ(done_, 1);
}

TEST_F(CopyLaneOverlapTest, DemandWaitsForThePieceBeingEnqueuedAndDoesTheRest) {
  const CopyJobPtr job = queued(5);
  std::jthread needer;
  std::atomic<bool> has_event{false};
  device_.on_copy = [&] {
    needer = std::jthread([&] { has_event = lane_.demand(job).ok(); });
    // Time for the other thread to do what it must not: it cannot be seen waiting, so this can miss a fault, and never
    // invents one.
    for (int i = 0; i < 10000; ++i) std::this_thread::yield();
    EXPECT_EQ(device_.copies, 2 + 1) << "a copy was enqueued twice";
  };
  device_.pass = true;
  lane_.pump();
  needer.join();
  EXPECT_TRUE(has_event);
  while (!lane_.idle()) lane_.pump();
  EXPECT_EQ(device_.copies, 2 + 5);
  EXPECT_EQ(job->state(), CopyState::kPassed);
  EXPECT_EQ(done_, 1);
}

TEST_F(CopyLaneOverlapTest, DemandOfAnotherJobDoesNotWait) {
  const CopyJobPtr job = queued(2), other = lane_.submit({.chunks = {kChunk}});
  bool has_event = false;
  device_.on_copy = [&] { has_event = lane_.demand(other).ok() && other->event(); };
  device_.pass = true;
  lane_.pump();
  EXPECT_TRUE(has_event);
  while (!lane_.idle()) lane_.pump();
  EXPECT_EQ(job->state(), CopyState::kPassed);
  EXPECT_EQ(other->state(), CopyState::kPassed);
}

}  // namespace
}  // namespace ebbtide
