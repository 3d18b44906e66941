// The lane under many threads that submit, need, cancel and pump at once. Worth most under ThreadSanitizer.
#include <ebbtide/transfer/copy_lane.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "tests/support/chaos_device.h"

namespace ebbtide {
namespace {

using test::ChaosDevice;

constexpr size_t kChunk = 256;

struct Transfer {
  std::vector<std::byte> host;
  std::shared_ptr<std::byte> device;
  std::atomic<int> done{0};
};

TEST(CopyLaneThreads, EveryJobEndsOnceWithItsBytes) {
  for (uint64_t seed = 0; seed < 10; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    ChaosDevice device({.seed = seed});
    SteadyClock clock;
    CopyLane lane(device, clock, Direction::kOut, {.max_in_flight = Bytes(4 * kChunk)});
    std::atomic<int> submitted{0}, succeeded{0}, cancelled{0}, wrong{0};

    const auto user = [&](uint64_t number) {
      std::mt19937_64 random(seed * 100 + number);
      const StreamId compute = device.make_stream("compute");
      std::vector<CopyJobPtr> jobs;
      for (int i = 0; i < 60; ++i) {
        const size_t chunks = 1 + random() % 6;
        const size_t bytes = chunks * kChunk;
        const auto value = std::byte(1 + random() % 250);
        auto transfer = std::make_shared<Transfer>();
        transfer->host.resize(bytes);
        transfer->device = device.allocate(bytes, compute, "x").value();
        std::byte* const source = transfer->device.get();
        ASSERT_TRUE(device.launch(compute, "fill", {}, {{source, bytes}},
                                  [source, bytes, value] { std::fill_n(source, bytes, value); }));
        CopyRequest request{.after = device.record(compute).value(), .keepalive = transfer};
        for (size_t at = 0; at < bytes; at += kChunk)
          request.chunks.push_back({transfer->host.data() + at, source + at, kChunk});
        request.urgency = random() % 4 == 0 ? Urgency::kDemand : Urgency::kQueued;
        Transfer* const raw = transfer.get();  // kept by the job
        request.done = [&, raw, value](const Status& status) {
          if (raw->done++ > 0) ++wrong;
          (status.ok() ? succeeded : cancelled)++;
          if (!status.ok()) return;
          device.host_read(raw->host.data(), raw->host.size(), "check");
          if (!std::ranges::all_of(raw->host, [&](std::byte b) { return b == value; })) ++wrong;
        };
        transfer.reset();
        ++submitted;
        jobs.push_back(lane.submit(std::move(request)));
        const CopyJobPtr& any = jobs[random() % jobs.size()];
        switch (random() % 4) {
          case 0:
            lane.cancel(any);
            break;
          case 1:
            if (const Result<EventPtr> event = lane.demand(any); event.ok()) {
              if (!event.value() || !device.wait(compute, event.value()).ok()) ++wrong;
            } else if (event.failure().code != FailureCode::kCancelled) {
              ++wrong;
            }
            break;
          default:
            lane.pump();
        }
      }
    };
    std::atomic<bool> stop{false};
    {
      std::jthread poller([&] {
        while (!stop) lane.pump();
      });
      std::vector<std::jthread> users;
      for (uint64_t number = 0; number < 3; ++number) users.emplace_back(user, number);
      users.clear();
      stop = true;
    }
    while (!lane.idle()) {
      device.run_all();
      lane.pump();
    }
    EXPECT_EQ(succeeded + cancelled, submitted);
    EXPECT_GT(succeeded, 0);
    EXPECT_EQ(wrong, 0);
    EXPECT_EQ(lane.stats().queued, Bytes(0));
    EXPECT_EQ(lane.stats().in_flight, Bytes(0));
    EXPECT_THAT(device.races(), testing::IsEmpty());
    EXPECT_THAT(device.misuse(), testing::IsEmpty());
    EXPECT_EQ(device.live_bytes(), Bytes(0));
  }
}

}  // namespace
}  // namespace ebbtide
