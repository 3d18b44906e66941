// Tensors that leave and come back at random through two lanes, on any rig.
#pragma once

#include <ebbtide/transfer/copy_lane.h>

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <memory>
#include <random>
#include <utility>

#include "tests/support/device_rig.h"

namespace ebbtide::test {

/// Each slot's tensor is computed, copied out, freed at once, copied into other memory, checked by a computation, and
/// freed. The compute stream is held now and then, so that every missing wait has its chance.
template <class Rig>
class LaneTraffic {
 public:
  LaneTraffic(Rig& rig, uint64_t seed) : rig_(rig), random_(seed), compute_(rig.make_stream("compute")) {
    for (Slot& slot : slots_) slot.block = rig_.host(kMostBytes);
  }

  void run(int rounds) {
    for (int round = 0; round < rounds; ++round) {
      if (random_() % 16 == 0) rig_.hold(compute_, std::chrono::microseconds(200));
      step(slots_[random_() % slots_.size()]);
      if (random_() % 2 == 0) pump();
    }
    for (Slot& slot : slots_)
      while (slot.state != State::kEmpty) {
        step(slot);
        rig_.finish();
        pump();
      }
    rig_.finish();
    pump();
    EXPECT_TRUE(out_.idle());
    EXPECT_TRUE(in_.idle());
    EXPECT_EQ(rig_.wrong(), 0u);
    EXPECT_GT(checked_, 0);
    EXPECT_EQ(out_.stats().failed + in_.stats().failed, 0);
  }

 private:
  static constexpr size_t kMostBytes = 512 << 10;
  enum class State { kEmpty, kLeaving, kLower, kReturning, kChecked };
  struct Slot {
    State state = State::kEmpty;
    std::shared_ptr<std::byte> block;   // host memory
    std::shared_ptr<std::byte> tensor;  // device memory
    CopyJobPtr out, in;
    size_t bytes = 0;
    uint32_t seed = 0;
  };

  void step(Slot& slot) {
    switch (slot.state) {
      case State::kEmpty:
        slot.bytes = 4 * (1 + random_() % (kMostBytes / 4));
        slot.seed = static_cast<uint32_t>(random_());
        slot.tensor = rig_.allocate(slot.bytes, compute_);
        rig_.write(compute_, slot.tensor.get(), slot.bytes, slot.seed);
        slot.out = out_.submit(request(slot, Direction::kOut));
        slot.state = State::kLeaving;
        return;
      case State::kLeaving:
        if (random_() % 2 == 0) (void)out_.demand(slot.out);
        if (!slot.out->event()) return;
        ASSERT_TRUE(device().wait(compute_, slot.out->event()));
        slot.tensor = nullptr;
        slot.state = State::kLower;
        return;
      case State::kLower:
        slot.tensor = rig_.allocate(slot.bytes, compute_);
        ASSERT_TRUE(device().wait(in_.stream(), slot.out->event()));
        slot.in = in_.submit(request(slot, Direction::kIn));
        slot.state = State::kReturning;
        return;
      case State::kReturning: {
        const Result<EventPtr> here = in_.demand(slot.in);
        ASSERT_TRUE(here) << here.failure().message;
        ASSERT_TRUE(device().wait(compute_, here.value()));
        rig_.check(compute_, slot.tensor.get(), slot.bytes, slot.seed);
        ++checked_;
        slot.tensor = nullptr;
        slot.state = State::kChecked;
        return;
      }
      case State::kChecked:
        if (slot.in->finished() && slot.out->finished()) slot.state = State::kEmpty;  // the block may be used again
        return;
    }
  }

  CopyRequest request(const Slot& slot, Direction direction) {
    CopyRequest request{
        .after = device().record(compute_).value(),
        .keepalive = std::make_shared<std::pair<std::shared_ptr<std::byte>, std::shared_ptr<std::byte>>>(
            slot.block, direction == Direction::kIn ? slot.tensor : nullptr)};
    for (size_t at = 0; at < slot.bytes;) {
      const size_t part = std::min<size_t>(slot.bytes - at, 1 + random_() % kMostBytes);
      if (direction == Direction::kOut)
        request.chunks.push_back({slot.block.get() + at, slot.tensor.get() + at, part});
      else
        request.chunks.push_back({slot.tensor.get() + at, slot.block.get() + at, part});
      at += part;
    }
    return request;
  }
  void pump() {
    out_.pump();
    in_.pump();
  }
  Device& device() { return rig_.device(); }

  Rig& rig_;
  std::mt19937_64 random_;
  const StreamId compute_;
  const SteadyClock clock_;
  const std::shared_ptr<LinkLoad> link_ = std::make_shared<LinkLoad>();
  CopyLane out_{rig_.device(), clock_, Direction::kOut, {.max_in_flight = MiB(1), .link = link_}};
  CopyLane in_{rig_.device(), clock_, Direction::kIn, {.max_in_flight = MiB(1), .link = link_}};
  std::array<Slot, 6> slots_;
  int checked_ = 0;
};

}  // namespace ebbtide::test
