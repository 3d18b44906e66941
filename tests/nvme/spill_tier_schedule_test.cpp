// Random schedules of what users ask and what kernel and disks answer, beside a model that knows what every extent must
// hold, who may touch it, and which answers excuse which failure.
#include "played_kernel.h"
#include "spill_fixture.h"

#include <map>
#include <set>

#include "tests/support/sweep.h"

namespace ebbtide::nvme {
namespace {

using Priority = SpillTier::Priority;

/// Memory as direct I/O wants it.
struct Buffer {
  explicit Buffer(size_t count)
      : bytes(count), data(static_cast<std::byte*>(std::aligned_alloc(512, count)), &std::free) {}
  size_t bytes;
  std::unique_ptr<std::byte, decltype(&std::free)> data;
  bool operator==(const Buffer& other) const {
    return bytes == other.bytes && std::memcmp(data.get(), other.data.get(), bytes) == 0;
  }
};
using BufferPtr = std::shared_ptr<Buffer>;

/// Runs of bytes on the disks.
class Places {
 public:
  using Run = std::pair<uint32_t, Extent>;
  void add(uint32_t lane, Extent run, uint64_t owner) {
    runs_.emplace(std::pair(lane, run.offset), std::pair(run.bytes, owner));
  }
  void remove(uint32_t lane, Extent run) { runs_.erase({lane, run.offset}); }
  /// Who has one of these bytes, but for `owner`.
  std::optional<uint64_t> other_than(uint64_t owner, uint32_t lane, Extent run) const {
    for (const auto& [at, has] : runs_) {
      if (at.first != lane || has.second == owner) continue;
      if (at.second < run.offset + run.bytes && run.offset < at.second + has.first) return has.second;
    }
    return std::nullopt;
  }

 private:
  std::multimap<std::pair<uint32_t, uint64_t>, std::pair<uint64_t, uint64_t>> runs_;
};

class Schedule {
 public:
  Schedule(uint64_t seed, const std::string& folder, std::vector<std::vector<std::byte>>& disks)
      : random_(seed), disks_(disks), kernel_(random_, disks) {
    const size_t lanes = 1 + random_() % 3;
    SpillOptions options;
    options.folders.assign(lanes, folder);
    options.budget = kBudget;
    options.checksum = checksum_ = random_() % 8 != 0;
    // Most schedules know some troubles only: what they excuse, they excuse there alone.
    const auto rate = [&](unsigned many) { return random_() % 2 ? 0 : static_cast<unsigned>(2 + random_() % many); };
    troubles_ = {.short_of_bytes = rate(6), .again = rate(6), .device = rate(60), .full = rate(60)};
    if (checksum_) {
      troubles_.flipped = rate(60);
      rot_ = rate(100);
    }
    kernel_.events = {
        [this](uint32_t lane, const IoRequest& request) { taken(lane, request); },
        [this](uint32_t lane, const IoRequest& request, int error) { ending(lane, request, error); },
        [this](const IoRequest& request) { ++transfers_.at(request.transfer).flips; },
    };
    auto tier = TierState::open(options, kernel_.factory());
    if (!tier) throw std::runtime_error(tier.failure().message);
    tier_ = std::move(tier).value();
  }

  void run() {
    const size_t steps = 60 + random_() % 100;
    for (size_t step = 0; step < steps && !::testing::Test::HasFailure(); ++step) act();
    const bool stopped = random_() % 2 == 0;
    if (stopped) {
      stopped_ = true;
      tier_->stop();
      EXPECT_FALSE(tier_->write(0, {{Buffer(512).data.get(), 512}}, [](auto) { ADD_FAILURE() << "refused"; }));
    }
    settle();
    EXPECT_EQ(open_transfers_, 0) << "somebody was never told";
    while (!items_.empty()) drop(items_.size() - 1);
    const SpillStats stats = tier_->stats();
    EXPECT_EQ(stats.bytes, Bytes(0));
    EXPECT_LE(stats.peak_bytes, kBudget);
    if (troubles_.device == 0 && troubles_.again == 0 && rot_ == 0 && troubles_.flipped == 0) {
      EXPECT_EQ(stats.quarantined, Bytes(0)) << "no place was at fault";
    }
    if (::testing::Test::HasFailure()) return;  // close() might wait for what has been lost
    if (!stopped) tier_->close();
    EXPECT_TRUE(kernel_.finished());
    const std::weak_ptr<TierState> gone = tier_;
    tier_.reset();
    kernel_.let_go();
    EXPECT_TRUE(gone.expired());
  }

  static constexpr Bytes kBudget = MiB(6);

 private:
  struct Transfer {
    bool write = false;
    uint64_t name = 0;  // of the item
    BufferPtr memory;
    BufferPtr expected;  // of a read
    SpilledItem item;    // of a read: lives as long
    int in_flight = 0;   // in the kernel's hands
    int hard = 0;        // requests that ended with an error
    int full = 0;        // of these, for lack of room
    int flips = 0;       // bits on their way
    bool withdrawn = false;
    bool begun = false;
    bool told = false;
  };
  struct Resting {
    SpilledItem item;
    BufferPtr content;
    uint64_t name;
  };

  void act() {
    switch (random_() % 16) {
      case 0:
      case 1:
      case 2:
        return write();
      case 3:
      case 4:
        return read();
      case 5:
        if (!items_.empty()) drop(random_() % items_.size());
        return;
      case 6: {
        const auto found = transfers_.find(1 + random_() % (transfers_.size() + 1));
        if (found != transfers_.end() && !found->second.told && !found->second.begun) found->second.withdrawn = true;
        return tier_->cancel(found == transfers_.end() ? 999'999 : found->first);
      }
      case 7:
        return tier_->raise_priority(1 + random_() % (transfers_.size() + 1));
      case 8:
        if (rot_ != 0 && random_() % rot_ == 0 && !items_.empty()) rot(items_[random_() % items_.size()]);
        return;
      case 9:
      case 10:
      case 11:
        kernel_.take();
        return;
      default:
        kernel_.end(troubles_);
        return;
    }
  }
  /// All that is under way comes to its end, in whatever order and with whatever troubles.
  void settle() {
    for (int idle = 0; idle < 200 && !::testing::Test::HasFailure();) {
      const bool moved = random_() % 2 ? kernel_.take() : kernel_.end(troubles_);
      idle = moved ? 0 : idle + 1;
    }
  }

  std::vector<IoPiece> pieces(const Buffer& buffer) {
    std::vector<IoPiece> result;
    size_t at = 0;
    for (size_t cuts = random_() % 4; cuts > 0; --cuts) {
      const size_t to = at + random_() % ((buffer.bytes - at) / 512 + 1) * 512;
      if (to == at || to == buffer.bytes) continue;
      result.push_back({buffer.data.get() + at, to - at});
      at = to;
    }
    result.push_back({buffer.data.get() + at, buffer.bytes - at});
    return result;
  }

  void write() {
    const size_t bytes = random_() % 64 == 0 ? (2048 + random_() % 300) * 512 : (1 + random_() % 48) * 512;
    auto memory = std::make_shared<Buffer>(bytes);
    uint64_t state = random_();
    for (size_t i = 0; i < bytes; i += 8) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      const uint64_t word = state ^ (state >> 29);
      std::memcpy(memory->data.get() + i, &word, 8);
    }
    const uint64_t name = random_() % 4;  // names may come again
    const uint64_t expected_id = last_id_ + 1;
    auto id = tier_->write(name, pieces(*memory),
                           [this, expected_id](Result<SpilledItem> item) { written(expected_id, std::move(item)); });
    if (!id) {
      EXPECT_EQ(id.failure().code, FailureCode::kNoSpace) << id.failure().message;
      return;
    }
    ASSERT_EQ(id.value(), expected_id);
    last_id_ = expected_id;
    ++open_transfers_;
    transfers_[expected_id] = {.write = true, .name = name, .memory = std::move(memory)};
  }

  void read() {
    if (items_.empty()) return;
    const Resting& resting = items_[random_() % items_.size()];
    auto memory = std::make_shared<Buffer>(resting.content->bytes);
    const uint64_t expected_id = last_id_ + 1;
    const auto id = tier_->read(resting.item, pieces(*memory), random_() % 2 ? Priority::kDemand : Priority::kPrefetch,
                                [this, expected_id](Status status) { was_read(expected_id, std::move(status)); });
    ASSERT_EQ(id, expected_id);
    last_id_ = expected_id;
    ++open_transfers_;
    transfers_[expected_id] = {
        .name = resting.name, .memory = std::move(memory), .expected = resting.content, .item = resting.item};
  }

  void drop(size_t index) {
    std::swap(items_[index], items_.back());
    items_.pop_back();
  }

  /// One bit of an item, where it rests.
  void rot(const Resting& resting) {
    const Item& item = TierState::item_of(resting.item);
    const PlacedExtent& placed = item.extents[random_() % item.extents.size()];
    const uint64_t bytes = item.extents.size() == 1 ? item.bytes : placed.extent.bytes;
    disks_[placed.file][placed.extent.offset + random_() % std::min(bytes, placed.extent.bytes)] ^= std::byte{16};
    rotten_.insert(&item);
  }

  // --- what the kernel is asked and answers

  void taken(uint32_t lane, const IoRequest& request) {
    Transfer& transfer = transfers_.at(request.transfer);
    EXPECT_FALSE(transfer.told) << "begun after its end";
    EXPECT_EQ(transfer.write, request.write);
    EXPECT_FALSE(transfer.withdrawn && !transfer.begun) << "withdrawn, and begun";
    transfer.begun = true;
    ++transfer.in_flight;
    EXPECT_GE(request.data, transfer.memory->data.get());
    EXPECT_LE(request.data + request.bytes, transfer.memory->data.get() + transfer.memory->bytes);
    ASSERT_LE(request.offset + request.bytes, disks_[lane].size());
    const Extent run{request.offset, request.bytes};
    if (request.write) {
      for (const Resting& resting : items_) expect_apart(lane, run, resting.item);
      for (const auto& [id, other] : transfers_)
        if (other.item && !other.told) expect_apart(lane, run, other.item);
      EXPECT_FALSE(writing_.other_than(request.transfer, lane, run)) << "two writes to one place";
      EXPECT_FALSE(bad_.other_than(0, lane, run)) << "a place that had failed was handed out again";
      writing_.add(lane, run, request.transfer);
    } else {
      EXPECT_FALSE(writing_.other_than(0, lane, run)) << "read while it is written";
    }
  }
  void expect_apart(uint32_t lane, Extent run, const SpilledItem& item) {
    for (const PlacedExtent& placed : TierState::item_of(item).extents) {
      EXPECT_TRUE(placed.file != lane || placed.extent.offset >= run.offset + run.bytes ||
                  run.offset >= placed.extent.offset + placed.extent.bytes)
          << "a write over an item that rests there";
    }
  }
  void ending(uint32_t lane, const IoRequest& request, int error) {
    Transfer& transfer = transfers_.at(request.transfer);
    --transfer.in_flight;
    const Extent run{request.offset, request.bytes};
    if (request.write) writing_.remove(lane, run);
    if (error == 0) return;
    ++transfer.hard;
    const bool full = error == ENOSPC || error == EDQUOT;
    if (full) ++transfer.full;
    if (request.write && !full) bad_.add(lane, run, request.transfer);
  }

  // --- what callers are told

  Transfer& tell(uint64_t id) {
    Transfer& transfer = transfers_.at(id);
    EXPECT_FALSE(transfer.told) << "told twice";
    EXPECT_EQ(transfer.in_flight, 0) << "the kernel still has the memory";
    transfer.told = true;
    --open_transfers_;
    return transfer;
  }
  void may_be_cancelled(const Transfer& transfer) {
    EXPECT_TRUE(transfer.withdrawn || stopped_);
    EXPECT_FALSE(transfer.begun);
  }
  void written(uint64_t id, Result<SpilledItem> result) {
    Transfer& transfer = tell(id);
    if (!result) {
      switch (result.failure().code) {
        case FailureCode::kCancelled:
          return may_be_cancelled(transfer);
        case FailureCode::kNoSpace:
          EXPECT_GT(transfer.full, 0) << result.failure().message;
          return;
        default:
          EXPECT_EQ(result.failure().code, FailureCode::kIo);
          EXPECT_GT(transfer.hard - transfer.full, 0) << result.failure().message;
          return;
      }
    }
    EXPECT_EQ(transfer.hard, 0) << "an error that nobody was told";
    const SpilledItem item = std::move(result).value();
    const Item& kept = TierState::item_of(item);
    ASSERT_EQ(kept.bytes, transfer.memory->bytes);
    uint64_t at = 0;
    for (const PlacedExtent& placed : kept.extents) {
      const uint64_t bytes = std::min(placed.extent.bytes, kept.bytes - at);
      EXPECT_EQ(std::memcmp(disks_[placed.file].data() + placed.extent.offset, transfer.memory->data.get() + at, bytes),
                0)
          << "an extent does not hold what it must";
      at += bytes;
    }
    ASSERT_EQ(at, kept.bytes);
    rotten_.erase(&kept);  // another item was there in memory once
    items_.push_back({item, transfer.memory, transfer.name});
  }
  void was_read(uint64_t id, Status status) {
    Transfer& transfer = tell(id);
    const Item* item = &TierState::item_of(transfer.item);
    const bool rotten = rotten_.contains(item);
    if (status) {
      EXPECT_TRUE(*transfer.memory == *transfer.expected) << "wrong bytes, and no word";
    } else if (status.failure().code == FailureCode::kCancelled) {
      may_be_cancelled(transfer);
    } else if (status.failure().code == FailureCode::kCorrupt) {
      EXPECT_TRUE(rotten || transfer.flips >= 2) << "right bytes called wrong";
    } else {
      EXPECT_EQ(status.failure().code, FailureCode::kIo);
      EXPECT_GT(transfer.hard, 4) << "given up too early: " << status.failure().message;
    }
    transfer.item = {};
  }

  std::mt19937_64 random_;
  std::vector<std::vector<std::byte>>& disks_;
  PlayedKernel kernel_;
  bool checksum_ = true, stopped_ = false;
  Troubles troubles_;
  unsigned rot_ = 0;
  std::shared_ptr<TierState> tier_;
  uint64_t last_id_ = 0;
  int open_transfers_ = 0;
  std::map<uint64_t, Transfer> transfers_;
  std::vector<Resting> items_;
  std::set<const Item*> rotten_;
  Places writing_, bad_;
};

TEST(SpillTierSchedule, HoldsWhatTheModelKnows) {
  Folder folder;
  folder.mount_tmpfs("64m");  // where that is forbidden, a disk does it, slower: the files' bytes are never touched
  // Not cleared between schedules: what lies on a disk is always somebody's old bytes.
  std::vector<std::vector<std::byte>> disks(3, std::vector<std::byte>(static_cast<size_t>(Schedule::kBudget.count())));
  test::sweep("spill tier, scripted completions", 100'000,
              [&](uint64_t seed) { Schedule(seed, folder.path(), disks).run(); });
}

}  // namespace
}  // namespace ebbtide::nvme
