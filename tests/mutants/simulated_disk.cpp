#include "tests/mutants/simulated_disk.h"

#include <ebbtide/nvme/drive_wear.h>
#include <ebbtide/nvme/spill_tier.h>

#include <algorithm>
#include <cerrno>
#include <iterator>
#include <list>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "tests/mutants/world.h"

namespace ebbtide {
namespace nvme {

struct Item {
  Item(std::shared_ptr<TierState> on, Bytes count);
  ~Item();
  const std::shared_ptr<TierState> tier;
  const Bytes bytes;
};

class TierState : public std::enable_shared_from_this<TierState> {
 public:
  struct Transfer {
    SpillTier::TransferId id = 0;
    std::vector<IoPiece> pieces;
    std::shared_ptr<Item> item;
    SpillTier::WriteDone write_done;  // one of the two
    SpillTier::ReadDone read_done;
    test::VectorClock asked{};
    int slot = 0;
    bool begun = false;
    bool cancelled = false;
  };

  SpillTier::TransferId add(Transfer transfer) {
    transfer.id = ++last_id;
    transfer.asked = mutants::World::now()->device().host_moment();
    // An agent each, as what the kernel does is: that one is over says nothing of another.
    int slot = 0;
    while (std::ranges::any_of(transfers, [&](const Transfer& other) { return other.slot == slot; })) ++slot;
    transfer.slot = slot;
    transfers.push_back(std::move(transfer));
    return last_id;
  }
  // As an I/O thread, which is ordered after the one that asked.
  bool turn() {
    if (transfers.empty()) return false;
    const auto index = mutants::World::now()->random()() % transfers.size();
    const auto it = std::next(transfers.begin(), static_cast<std::ptrdiff_t>(index));
    test::ChaosDevice& device = mutants::World::now()->device();
    const test::ChaosDevice::AgentScope agent(device, "disk " + std::to_string(it->slot));
    if (!it->begun && !it->cancelled) {
      it->begun = true;
      device.host_after(it->asked);
      if (it->write_done) mutants::World::now()->memory_read(it->pieces.front().data);
      for (const IoPiece& piece : it->pieces) {
        if (it->write_done)
          device.host_read(piece.data, piece.bytes, "disk write");
        else
          device.host_write(piece.data, piece.bytes, "disk read");
      }
      return true;
    }
    end(it);
    return true;
  }
  /// As the thread that asks for it.
  void cancel(SpillTier::TransferId id) {
    const auto found = std::ranges::find(transfers, id, &Transfer::id);
    if (found == transfers.end() || found->begun) return;
    found->cancelled = true;
    end(found);
  }
  static Bytes size_of(const SpilledItem& item) { return item.item_->bytes; }
  static std::shared_ptr<Item> share(const SpilledItem& item) { return item.item_; }

  std::list<Transfer> transfers;
  SpillTier::TransferId last_id = 0;
  Bytes bytes;

 private:
  void end(std::list<Transfer>::iterator it) {
    Transfer ended = std::move(*it);
    transfers.erase(it);
    mutants::World::now()->set_disk_touched(ended.begun);
    const Failure withdrawn{FailureCode::kCancelled, 0, "The transfer was withdrawn before it began."};
    if (ended.write_done)
      ended.write_done(ended.cancelled ? Result<SpilledItem>(withdrawn) : SpilledItem(std::move(ended.item)));
    else
      ended.read_done(ended.cancelled ? Status(withdrawn) : success());
  }
};

Item::Item(std::shared_ptr<TierState> on, Bytes count) : tier(std::move(on)), bytes(count) {
  tier->bytes += bytes;
}
Item::~Item() {
  tier->bytes -= bytes;
}

/// A disk that does not say.
int command_drive(const std::string&, nvme_passthru_cmd&) {
  return EIO;
}
std::optional<Bytes> endurance_left(const std::vector<std::string>&, const DriveCommand&, const std::string&) {
  return std::nullopt;
}

}  // namespace nvme

namespace {

std::vector<std::shared_ptr<nvme::TierState>>& tiers() {
  static std::vector<std::shared_ptr<nvme::TierState>> all;
  return all;
}

}  // namespace

Bytes SpilledItem::size() const noexcept {
  return item_ ? item_->bytes : Bytes(0);
}

Result<std::unique_ptr<SpillTier>> SpillTier::open(SpillOptions) {
  auto state = std::make_shared<nvme::TierState>();
  tiers().push_back(state);
  return std::unique_ptr<SpillTier>(new SpillTier(std::move(state)));
}
SpillTier::SpillTier(std::shared_ptr<nvme::TierState> state) : state_(std::move(state)) {}
SpillTier::~SpillTier() {
  for (auto& transfer : state_->transfers) transfer.cancelled |= !transfer.begun;
}

IoAlignment SpillTier::alignment() const noexcept {
  return {};
}

Result<SpillTier::TransferId> SpillTier::write(uint64_t, std::vector<IoPiece> pieces, WriteDone done) {
  Bytes bytes;
  for (const IoPiece& piece : pieces) bytes += Bytes(static_cast<int64_t>(piece.bytes));
  return state_->add({.pieces = std::move(pieces),
                      .item = std::make_shared<nvme::Item>(state_, bytes),
                      .write_done = std::move(done)});
}

SpillTier::TransferId SpillTier::read(const SpilledItem& item, std::vector<IoPiece> pieces, Priority, ReadDone done) {
  return state_->add({.pieces = std::move(pieces), .item = nvme::TierState::share(item), .read_done = std::move(done)});
}

void SpillTier::raise_priority(TransferId) {}

void SpillTier::cancel(TransferId id) {
  state_->cancel(id);
}

SpillStats SpillTier::stats() const {
  return {.bytes = state_->bytes, .budget = GiB(1024)};
}

Bytes SpillTier::bytes() const noexcept {
  return state_->bytes;
}

std::shared_ptr<SlabWatcher> SpillTier::watcher() const {
  return nullptr;
}

void SpillTier::close() {
  while (state_->turn()) {
  }
}

namespace mutants {

bool disk_turn() {
  std::erase_if(tiers(), [](const auto& tier) { return tier.use_count() == 1 && tier->transfers.empty(); });
  if (tiers().empty()) return false;
  return tiers()[World::now()->random()() % tiers().size()]->turn();
}

void run_disks_dry() {
  for (const auto& tier : tiers())
    while (tier->turn()) {
    }
}

}  // namespace mutants
}  // namespace ebbtide
