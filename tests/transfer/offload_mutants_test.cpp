// Proof that lane and detector are what a store can be built on: the smallest offloader over both, from which every
// wait and every hold can be removed. Whole, it is clean in every schedule; with anything removed, the detector says so
// in every schedule.
#include <ebbtide/transfer/copy_lane.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tests/support/chaos_device.h"
#include "tests/support/fake_clock.h"

namespace ebbtide {
namespace {

using test::ChaosDevice;

/// What is removed.
enum class Mutant {
  kNone,
  kOutIgnoresProducer,        // the copy out does not wait for the kernel that writes the tensor
  kDropsBeforeEnqueued,       // the tensor is freed before its copy is enqueued
  kDropsUnwaited,             // the tensor is freed without the compute stream waiting for the copy
  kForgetsTensor,             // a record that dies while its tensor is copied out does not hold the tensor
  kForgetsOutBlock,           // nor the block
  kDiskWritesUnpassed,        // the block goes to disk before the copy out has passed
  kBlockFreedUnderDiskWrite,  // the block is free before the disk has read it
  kFetchBeforeDiskRead,       // the copy in does not wait for the disk
  kInIgnoresDestination,      // the copy in does not wait for the memory that it writes to be free
  kDestinationOnCopyStream,   // that memory is allocated on the copy stream, not on the consumer's
  kConsumerIgnoresFetch,      // the consumer does not wait for the copy in
  kBlockFreedUnderFetch,      // the block is free before the copy in has passed
  kForgetsUnusedPrefetch,     // a prefetch that nobody wants any more does not hold its destination
};

struct NamedMutant {
  Mutant mutant;
  const char* name;
};
void PrintTo(const NamedMutant& mutant, std::ostream* out) {
  *out << mutant.name;
}

constexpr size_t kBytes = 512;
constexpr int kLayers = 5;
constexpr int kSteps = 3;

/// Host memory for one tensor, out of a pool that hands the last freed out first. A free counts as a write.
class BlockPool {
 public:
  using Block = std::shared_ptr<std::byte>;
  explicit BlockPool(ChaosDevice& device) : device_(device) {}
  Block acquire() {
    if (free_.empty()) {
      blocks_.push_back(std::vector<std::byte>(kBytes));
      free_.push_back(blocks_.back().data());
    }
    std::byte* const data = free_.back();
    free_.pop_back();
    return Block(data, [this](std::byte* freed) {
      device_.host_write(freed, kBytes, "free block");
      std::memset(freed, 0xEE, kBytes);
      free_.push_back(freed);
    });
  }

 private:
  ChaosDevice& device_;
  std::deque<std::vector<std::byte>> blocks_;
  std::vector<std::byte*> free_;
};

/// A disk is an agent: what it does is ordered only by the moments handed to it and back.
class FakeDisk {
 public:
  explicit FakeDisk(ChaosDevice& device) : device_(device) {}
  test::VectorClock write(const void* key, const std::byte* block) {
    return act([&] {
      device_.host_read(block, kBytes, "disk write");
      content_[key].assign(block, block + kBytes);
    });
  }
  test::VectorClock read(const void* key, std::byte* block) {
    return act([&] {
      device_.host_write(block, kBytes, "disk read");
      std::memcpy(block, content_.at(key).data(), kBytes);
    });
  }

 private:
  test::VectorClock act(const std::function<void()>& transfer) {
    const test::VectorClock asked = device_.host_moment();
    const ChaosDevice::AgentScope disk(device_, "disk");
    device_.host_after(asked);
    transfer();
    return device_.host_moment();
  }
  ChaosDevice& device_;
  std::map<const void*, std::vector<std::byte>> content_;
};

class Offloader {
 public:
  using Tensor = std::shared_ptr<std::byte>;

  struct Record {
    std::shared_ptr<Tensor> tensor;  // a slot shared with the copy out: emptied once the compute stream waits for it
    BlockPool::Block block;
    CopyJobPtr out, in;
    Tensor fetched;
    bool spills = false, on_disk = false;
  };
  using RecordPtr = std::shared_ptr<Record>;

  Offloader(ChaosDevice& device, StreamId compute, Mutant mutant)
      : device_(device), compute_(compute), mutant_(mutant), pool_(device), disk_(device) {}

  RecordPtr pack(Tensor tensor, bool spills) {
    let_go();
    auto record = std::make_shared<Record>();
    record->tensor = std::make_shared<Tensor>(std::move(tensor));
    record->block = pool_.acquire();
    record->spills = spills;
    std::byte* const data = record->tensor->get();
    const auto after = removed(Mutant::kOutIgnoresProducer) ? nullptr : device_.record(compute_).value();
    record->out = out_.submit({
        .chunks = halves(record->block.get(), data),
        .after = after,
        .keepalive =
            hold(removed(Mutant::kForgetsOutBlock) ? nullptr : record->block,
                 removed(Mutant::kForgetsTensor) || removed(Mutant::kDropsBeforeEnqueued) ? nullptr : record->tensor),
        .done =
            [this, weak = std::weak_ptr(record)](const Status& status) {
              if (const RecordPtr alive = weak.lock(); alive && status.ok() && alive->spills) spill(*alive);
            },
    });
    leaving_.push_back(record);
    if (removed(Mutant::kDropsBeforeEnqueued)) record->tensor->reset();
    return record;
  }

  /// What can be given up now: the compute stream waits for the copy and may then reuse the memory.
  void let_go() {
    std::erase_if(leaving_, [&](const std::weak_ptr<Record>& weak) {
      const RecordPtr record = weak.lock();
      if (!record) return true;
      const EventPtr copied = record->out->event();
      if (!copied) return false;
      if (!removed(Mutant::kDropsUnwaited)) EXPECT_TRUE(device_.wait(compute_, copied));
      record->tensor->reset();
      if (removed(Mutant::kDiskWritesUnpassed) && record->spills) spill(*record);
      return true;
    });
  }

  void prefetch(Record& record) { fetch(record, Urgency::kQueued); }

  Tensor unpack(Record& record) {
    if (*record.tensor) return *record.tensor;  // it has not left yet
    fetch(record, Urgency::kDemand);
    const EventPtr here = in_.demand(record.in).value();
    if (!removed(Mutant::kConsumerIgnoresFetch)) EXPECT_TRUE(device_.wait(compute_, here));
    record.block.reset();
    return std::move(record.fetched);
  }

  /// The record dies in whatever state it is.
  void drop(RecordPtr record) {
    out_.cancel(record->out);
    if (record->in) in_.cancel(record->in);
  }

  void pump() {
    out_.pump();
    in_.pump();
    let_go();
  }
  void settle() {
    do {
      device_.run_all();
      pump();
    } while (!out_.idle() || !in_.idle());
  }

 private:
  bool removed(Mutant mutant) const { return mutant_ == mutant; }

  static CopyChunks halves(std::byte* to, const std::byte* from) {
    return {{to, from, kBytes / 2}, {to + kBytes / 2, from + kBytes / 2, kBytes / 2}};
  }
  static std::shared_ptr<void> hold(std::shared_ptr<void> a, std::shared_ptr<void> b) {
    return std::make_shared<std::pair<std::shared_ptr<void>, std::shared_ptr<void>>>(std::move(a), std::move(b));
  }

  void spill(Record& record) {
    if (record.on_disk || record.fetched) return;
    const test::VectorClock written = disk_.write(&record, record.block.get());
    if (!removed(Mutant::kBlockFreedUnderDiskWrite)) device_.host_after(written);
    record.on_disk = true;
    record.block.reset();
  }

  void fetch(Record& record, Urgency urgency) {
    if (record.in || *record.tensor) return;
    if (record.on_disk) {
      record.block = pool_.acquire();
      const test::VectorClock read = disk_.read(&record, record.block.get());
      if (!removed(Mutant::kFetchBeforeDiskRead)) device_.host_after(read);
    }
    const StreamId owner = removed(Mutant::kDestinationOnCopyStream) ? in_.stream() : compute_;
    record.fetched = device_.allocate(kBytes, owner, "fetched").value();
    record.in = in_.submit({
        .chunks = halves(record.fetched.get(), record.block.get()),
        .after = removed(Mutant::kInIgnoresDestination) ? nullptr : device_.record(owner).value(),
        .keepalive = hold(removed(Mutant::kBlockFreedUnderFetch) ? nullptr : record.block,
                          removed(Mutant::kForgetsUnusedPrefetch) ? nullptr : record.fetched),
        .urgency = urgency,
    });
  }

  ChaosDevice& device_;
  const StreamId compute_;
  const Mutant mutant_;
  BlockPool pool_;
  FakeDisk disk_;
  test::FakeClock clock_;
  CopyLane out_{device_, clock_, Direction::kOut, {.max_in_flight = Bytes(kBytes * 3 / 2)}};
  CopyLane in_{device_, clock_, Direction::kIn, {.max_in_flight = Bytes(kBytes * 3 / 2)}};
  std::vector<std::weak_ptr<Record>> leaving_;
};

/// A model as far as memory goes: each layer of a forward writes a tensor, the backward reads them in reverse and sums
/// them up in a gradient.
class Training {
 public:
  Training(uint64_t seed, Mutant mutant)
      : device_({.seed = seed, .capacity = MiB(1)}), offloader_(device_, compute_, mutant) {
    gradient_ = device_.allocate(sizeof(uint64_t), compute_, "gradient").value();
    auto* sum = reinterpret_cast<uint64_t*>(gradient_.get());
    EXPECT_TRUE(device_.launch(compute_, "zero", {}, {{sum, sizeof *sum}}, [sum] { *sum = 0; }));
  }

  void run() {
    for (int step = 0; step < kSteps; ++step) {
      Pass a = forward(), b = forward();   // two micro-batches: blocks of one are reused by the other
      if (step == 1) offloader_.settle();  // all have left, some to disk
      backward(std::move(a));
      for (Offloader::RecordPtr& record : forward()) offloader_.drop(std::move(record));  // a graph nobody wants
      backward(std::move(b));
      Pass c = forward();
      offloader_.settle();
      offloader_.prefetch(*c.back());
      for (Offloader::RecordPtr& record : c) offloader_.drop(std::move(record));
    }
    offloader_.settle();
    uint64_t sum = 0;
    ASSERT_TRUE(device_.copy(&sum, gradient_.get(), sizeof sum, Direction::kOut, compute_));
    ASSERT_TRUE(device_.synchronize(device_.record(compute_).value()));
    device_.host_read(&sum, sizeof sum, "result");
    right_ = sum == expected_;
  }

  bool right() const { return right_; }
  const ChaosDevice& device() const { return device_; }

 private:
  using Pass = std::vector<Offloader::RecordPtr>;

  Pass forward() {
    Pass pass;
    for (int layer = 0; layer < kLayers; ++layer) {
      auto tensor = device_.allocate(kBytes, compute_, "saved").value();
      std::byte* const data = tensor.get();
      const uint64_t number = ++tensors_;
      EXPECT_TRUE(device_.launch(compute_, "forward", {}, {{data, kBytes}},
                                 [data, number] { std::memset(data, static_cast<int>(number % 251), kBytes); }));
      values_[pass.emplace_back(offloader_.pack(std::move(tensor), layer % 2 == 1)).get()] = number % 251;
    }
    return pass;
  }

  void backward(Pass pass) {
    for (size_t i = pass.size(); i-- > 0;) {
      if (i > 1) offloader_.prefetch(*pass[i - 2]);
      const Offloader::Tensor tensor = offloader_.unpack(*pass[i]);
      const std::byte* const data = tensor.get();
      auto* const sum = reinterpret_cast<uint64_t*>(gradient_.get());
      EXPECT_TRUE(device_.launch(compute_, "backward", {{data, kBytes}}, {{sum, sizeof *sum}}, [data, sum] {
        for (size_t b = 0; b < kBytes; ++b) *sum = *sum * 31 + static_cast<uint64_t>(data[b]);
      }));
      for (size_t b = 0; b < kBytes; ++b) expected_ = expected_ * 31 + values_.at(pass[i].get());
      offloader_.drop(std::move(pass[i]));
      if (i % 2 == 0) offloader_.pump();
    }
  }

  ChaosDevice device_;
  StreamId compute_ = device_.make_stream("compute");
  std::shared_ptr<std::byte> gradient_;
  Offloader offloader_;
  std::map<const void*, uint64_t> values_;
  uint64_t tensors_ = 0;
  uint64_t expected_ = 0;
  bool right_ = false;
};

constexpr uint64_t kSeeds = 50;

TEST(OffloadMutants, TheWholeOffloaderIsCleanInEverySchedule) {
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Training training(seed, Mutant::kNone);
    training.run();
    EXPECT_THAT(training.device().races(), testing::IsEmpty());
    EXPECT_THAT(training.device().misuse(), testing::IsEmpty());
    EXPECT_TRUE(training.right());
  }
}

class OffloadMutant : public testing::TestWithParam<NamedMutant> {};

TEST_P(OffloadMutant, IsCaughtInEverySchedule) {
  int wrong = 0;
  std::string example;
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    Training training(seed, GetParam().mutant);
    training.run();
    const auto races = training.device().races();
    EXPECT_FALSE(races.empty()) << "seed " << seed;
    if (!races.empty()) example = *races.begin();
    wrong += !training.right();
  }
  std::cout << GetParam().name << ": the gradients alone show it in " << wrong << " of " << kSeeds << " schedules; "
            << example << "\n";
}

#define MUTANT(name)    \
  NamedMutant {         \
    Mutant::name, #name \
  }
INSTANTIATE_TEST_SUITE_P(Each, OffloadMutant,
                         testing::Values(MUTANT(kOutIgnoresProducer), MUTANT(kDropsBeforeEnqueued),
                                         MUTANT(kDropsUnwaited), MUTANT(kForgetsTensor), MUTANT(kForgetsOutBlock),
                                         MUTANT(kDiskWritesUnpassed), MUTANT(kBlockFreedUnderDiskWrite),
                                         MUTANT(kFetchBeforeDiskRead), MUTANT(kInIgnoresDestination),
                                         MUTANT(kDestinationOnCopyStream), MUTANT(kConsumerIgnoresFetch),
                                         MUTANT(kBlockFreedUnderFetch), MUTANT(kForgetsUnusedPrefetch)),
                         [](const auto& info) { return std::string(info.param.name + 1); });

}  // namespace
}  // namespace ebbtide
