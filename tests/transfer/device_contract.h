// What transfer/device.h promises of every device, as tests over a rig (tests/support/device_rig.h).
#pragma once

#include <ebbtide/transfer/device.h>

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cctype>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "tests/support/device_rig.h"

namespace ebbtide::test {

constexpr size_t kContractBytes = 64 << 10;

/// Why there is no such rig on this machine; none: there is.
template <class Rig>
std::optional<std::string> why_unavailable() {
  if constexpr (requires { Rig::unavailable(); })
    return Rig::unavailable();
  else
    return std::nullopt;
}

template <class Rig>
class DeviceContract : public testing::Test {
 protected:
  void SetUp() override {
    if (const auto why = why_unavailable<Rig>()) GTEST_SKIP() << *why;
    rig_.emplace();
  }
  void TearDown() override {
    if (!rig_) return;
    rig_->finish();
    rig_->expect_clean();
  }
  Device& device() { return rig_->device(); }
  StreamId out() { return device().copy_stream(Direction::kOut); }
  StreamId in() { return device().copy_stream(Direction::kIn); }
  EventPtr record(StreamId stream) {
    Result<EventPtr> event = device().record(stream);
    EXPECT_TRUE(event) << event.failure().message;
    return event.ok() ? event.value() : nullptr;
  }
  void order(StreamId earlier, StreamId later) { EXPECT_TRUE(device().wait(later, record(earlier))); }
  void copy_out(std::byte* to, const std::byte* from, size_t bytes = kContractBytes) {
    const Status copied = device().copy(to, from, bytes, Direction::kOut, out());
    EXPECT_TRUE(copied) << copied.failure().message;
  }
  void copy_in(std::byte* to, const std::byte* from, size_t bytes = kContractBytes) {
    const Status copied = device().copy(to, from, bytes, Direction::kIn, in());
    EXPECT_TRUE(copied) << copied.failure().message;
  }
  /// All bytes of registered host memory, which the stream has written.
  bool arrived(StreamId stream, const std::byte* host, int value, size_t bytes = kContractBytes) {
    EXPECT_TRUE(device().synchronize(record(stream)));
    rig_->host_reads(host, bytes);
    return std::all_of(host, host + bytes, [&](std::byte byte) { return byte == std::byte(value); });
  }

  std::optional<Rig> rig_;
};

TYPED_TEST_SUITE_P(DeviceContract);

TYPED_TEST_P(DeviceContract, SaysWhoItIs) {
  EXPECT_FALSE(this->device().name().empty());
  const std::string pci = this->device().pci_address();
  EXPECT_TRUE(std::ranges::none_of(pci, [](char letter) { return std::isupper(letter) != 0; })) << pci;
  const Result<DeviceMemory> memory = this->device().memory();
  ASSERT_TRUE(memory) << memory.failure().message;
  EXPECT_GT(memory.value().total, Bytes(0));
  EXPECT_LE(memory.value().free, memory.value().total);
}

TYPED_TEST_P(DeviceContract, CopyStreamsAreItsOwn) {
  const StreamId compute = this->rig_->make_stream("compute");
  if (this->device().is_host()) {
    EXPECT_EQ(this->out(), kHostStream);
    return;
  }
  EXPECT_NE(this->out(), this->in());
  for (const StreamId copies : {this->out(), this->in()}) {
    EXPECT_NE(copies, StreamId{0}) << "that is the stream of whoever names none";
    EXPECT_NE(copies, compute);
    EXPECT_EQ(this->device().copy_stream(copies == this->out() ? Direction::kOut : Direction::kIn), copies);
  }
}

TYPED_TEST_P(DeviceContract, NothingIsCapturedByItself) {
  for (const StreamId stream : {this->rig_->make_stream("compute"), this->out(), this->in()}) {
    const Result<bool> capturing = this->device().capturing(stream);
    ASSERT_TRUE(capturing) << capturing.failure().message;
    EXPECT_FALSE(capturing.value());
  }
}

TYPED_TEST_P(DeviceContract, AnEventPassesWithWhatIsBeforeIt) {
  const StreamId compute = this->rig_->make_stream("compute");
  this->rig_->hold(compute, kHoldTime);
  const EventPtr event = this->record(compute);
  if (TypeParam::kHolds) {
    EXPECT_FALSE(this->device().passed(event).value());
  }
  this->rig_->finish();
  EXPECT_TRUE(this->device().passed(event).value());
  EXPECT_TRUE(this->device().passed(event).value()) << "and stays so";
}

TYPED_TEST_P(DeviceContract, SynchronizeReturnsWhenTheEventHasPassed) {
  const StreamId compute = this->rig_->make_stream("compute");
  this->rig_->hold(compute, kHoldTime);
  const EventPtr event = this->record(compute);
  EXPECT_TRUE(this->device().synchronize(event));
  EXPECT_TRUE(this->device().passed(event).value());
}

TYPED_TEST_P(DeviceContract, BytesGoOutAndComeBack) {
  const StreamId compute = this->rig_->make_stream("compute");
  const auto first = this->rig_->allocate(kContractBytes, compute);
  const auto second = this->rig_->allocate(kContractBytes, compute);
  const auto host = this->rig_->host(kContractBytes), check = this->rig_->host(kContractBytes);
  this->rig_->hold(compute, kHoldTime);
  this->rig_->fill(compute, first.get(), kContractBytes, 0x5A);
  this->order(compute, this->out());
  this->copy_out(host.get(), first.get());
  this->order(this->out(), this->in());
  this->order(compute, this->in());
  this->copy_in(second.get(), host.get());
  this->order(this->in(), this->out());
  this->copy_out(check.get(), second.get());
  this->order(this->out(), compute);  // which frees the memory
  EXPECT_TRUE(this->arrived(this->out(), check.get(), 0x5A));
}

TYPED_TEST_P(DeviceContract, CopiesOfOddSizesAndAddressesTouchNothingElse) {
  const StreamId compute = this->rig_->make_stream("compute");
  const auto memory = this->rig_->allocate(kContractBytes, compute);
  const auto host = this->rig_->host(kContractBytes);
  this->rig_->fill(compute, memory.get(), kContractBytes, 3);
  this->order(compute, this->out());
  this->copy_out(host.get() + 5, memory.get() + 17, 1001);
  this->order(this->out(), compute);
  ASSERT_TRUE(this->device().synchronize(this->record(this->out())));
  this->rig_->host_reads(host.get(), kContractBytes);
  EXPECT_EQ(std::count(host.get(), host.get() + kContractBytes, std::byte{3}), 1001);
  EXPECT_EQ(host.get()[5], std::byte{3});
  EXPECT_EQ(host.get()[5 + 1000], std::byte{3});
}

TYPED_TEST_P(DeviceContract, RowsGoOutPackedAndComeBackToTheirPlaces) {
  constexpr size_t kRow = 700, kPitch = 1600, kRows = 31, kHull = (kRows - 1) * kPitch + kRow, kFirst = 48;
  static_assert(kFirst + kHull <= kContractBytes);
  const StreamId compute = this->rig_->make_stream("compute");
  const auto first = this->rig_->allocate(kContractBytes, compute);
  const auto second = this->rig_->allocate(kContractBytes, compute);
  const auto packed = this->rig_->host(kRow * kRows), all = this->rig_->host(kContractBytes);
  this->rig_->hold(compute, kHoldTime);
  this->rig_->fill(compute, first.get(), kContractBytes, 0xEE);
  for (size_t row = 0; row < kRows; ++row)
    this->rig_->fill(compute, first.get() + kFirst + row * kPitch, kRow, static_cast<int>(row + 1));
  this->rig_->fill(compute, second.get(), kContractBytes, 0x77);
  this->order(compute, this->out());
  EXPECT_TRUE(this->device().copy_rows(packed.get(), first.get() + kFirst, {kRow, kRows, kRow, kPitch}, Direction::kOut,
                                       this->out()));
  this->order(this->out(), this->in());
  EXPECT_TRUE(this->device().copy_rows(second.get() + kFirst, packed.get(), {kRow, kRows, kPitch, kRow}, Direction::kIn,
                                       this->in()));
  this->order(this->in(), this->out());
  this->copy_out(all.get(), second.get());
  this->order(this->out(), compute);  // which frees the memory
  ASSERT_TRUE(this->device().synchronize(this->record(this->out())));
  this->rig_->host_reads(packed.get(), kRow * kRows);
  this->rig_->host_reads(all.get(), kContractBytes);
  std::vector<std::byte> expected(kContractBytes, std::byte{0x77});
  for (size_t row = 0; row < kRows; ++row) {
    const auto value = std::byte(row + 1);
    EXPECT_EQ(std::count(packed.get() + row * kRow, packed.get() + (row + 1) * kRow, value), ptrdiff_t{kRow}) << row;
    std::fill_n(expected.begin() + static_cast<ptrdiff_t>(kFirst + row * kPitch), kRow, value);
  }
  EXPECT_EQ(std::memcmp(all.get(), expected.data(), kContractBytes), 0) << "the rows, and nothing else";
}

TYPED_TEST_P(DeviceContract, AnEventGivenBackIsStillWaitedFor) {
  const StreamId compute = this->rig_->make_stream("compute"), other = this->rig_->make_stream("other");
  const auto memory = this->rig_->allocate(kContractBytes, compute);
  const auto host = this->rig_->host(kContractBytes);
  this->rig_->hold(compute, kHoldTime);
  this->rig_->fill(compute, memory.get(), kContractBytes, 9);
  this->order(compute, this->out());
  for (int i = 0; i < 8; ++i) (void)this->record(other);  // the same event again, if it is pooled
  this->copy_out(host.get(), memory.get());
  this->order(this->out(), compute);
  EXPECT_TRUE(this->arrived(this->out(), host.get(), 9));
}

TYPED_TEST_P(DeviceContract, AnEventKeepsItsPointWhileOthersAreRecorded) {
  if (!TypeParam::kHolds) return;
  const StreamId compute = this->rig_->make_stream("compute"), other = this->rig_->make_stream("other");
  const EventPtr passed = this->record(other);
  ASSERT_TRUE(this->device().synchronize(passed));
  this->rig_->hold(compute, kHoldTime);
  const EventPtr late = this->record(compute);
  EXPECT_TRUE(this->device().passed(passed).value());
  EXPECT_FALSE(this->device().passed(late).value());
}

TYPED_TEST_P(DeviceContract, MeaninglessEventsAreRefused) {
  if (this->device().is_host()) return;  // where every event has passed
  TypeParam other;
  const EventPtr foreign = other.device().record(other.device().copy_stream(Direction::kIn)).value();
  const EventPtr made_up = std::make_shared<Event>();
  for (const EventPtr& event : {foreign, made_up, EventPtr()}) {
    EXPECT_EQ(this->device().wait(this->out(), event).failure().code, FailureCode::kInvalid);
    EXPECT_EQ(this->device().passed(event).failure().code, FailureCode::kInvalid);
    EXPECT_EQ(this->device().synchronize(event).failure().code, FailureCode::kInvalid);
  }
  this->rig_.reset();  // the pretend device has noted these as misuse
}

TYPED_TEST_P(DeviceContract, AnEventMayOutliveTheDevice) {
  this->rig_->hold(this->out(), kHoldTime);
  EventPtr event = this->record(this->out());
  this->rig_->let_go();
  event.reset();
  this->rig_.reset();
}

TYPED_TEST_P(DeviceContract, HostMemoryIsRegisteredOnce) {
  if (this->device().is_host()) return;  // nothing to do
  const auto memory = page_memory(kContractBytes);
  ASSERT_TRUE(this->device().register_host(memory.get(), kContractBytes));
  EXPECT_EQ(this->device().register_host(memory.get(), kContractBytes).failure().code, FailureCode::kInvalid);
  this->device().unregister_host(memory.get(), kContractBytes);
  ASSERT_TRUE(this->device().register_host(memory.get(), kContractBytes)) << "and may be again";
  this->device().unregister_host(memory.get(), kContractBytes);
  this->rig_.reset();  // the pretend device notes it as misuse
}

TYPED_TEST_P(DeviceContract, ThreadsUseItAtOnce) {
  constexpr int kThreads = 4, kRounds = 25;
  struct Own {
    StreamId stream{};
    std::shared_ptr<std::byte> memory, host;
  };
  std::vector<Own> own(kThreads);
  for (Own& each : own) {
    each.stream = this->rig_->make_stream("compute");
    each.memory = this->rig_->allocate(kContractBytes, each.stream);
    each.host = this->rig_->host(kContractBytes);
  }
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      Own& each = own[static_cast<size_t>(t)];
      for (int round = 1; round <= kRounds; ++round) {
        const int value = t * kRounds + round;
        this->rig_->fill(each.stream, each.memory.get(), kContractBytes, value);
        this->order(each.stream, this->out());
        this->copy_out(each.host.get(), each.memory.get());
        const EventPtr copied = this->record(this->out());
        EXPECT_TRUE(this->device().wait(each.stream, copied));
        EXPECT_TRUE(this->device().synchronize(copied));
        EXPECT_TRUE(this->device().passed(copied).value());
        this->rig_->host_reads(each.host.get(), kContractBytes);
        wrong += !std::all_of(each.host.get(), each.host.get() + kContractBytes,
                              [&](std::byte byte) { return byte == std::byte(value); });
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

REGISTER_TYPED_TEST_SUITE_P(DeviceContract, SaysWhoItIs, CopyStreamsAreItsOwn, NothingIsCapturedByItself,
                            AnEventPassesWithWhatIsBeforeIt, SynchronizeReturnsWhenTheEventHasPassed,
                            BytesGoOutAndComeBack, CopiesOfOddSizesAndAddressesTouchNothingElse,
                            RowsGoOutPackedAndComeBackToTheirPlaces, AnEventGivenBackIsStillWaitedFor,
                            AnEventKeepsItsPointWhileOthersAreRecorded, MeaninglessEventsAreRefused,
                            AnEventMayOutliveTheDevice, HostMemoryIsRegisteredOnce, ThreadsUseItAtOnce);

}  // namespace ebbtide::test
