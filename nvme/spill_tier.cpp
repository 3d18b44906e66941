#include <ebbtide/nvme/spill_tier.h>
#include <ebbtide/nvme/tier_state.h>

namespace ebbtide {

Bytes SpilledItem::size() const noexcept {
  return Bytes(item_ ? static_cast<int64_t>(item_->bytes) : 0);
}

Result<std::unique_ptr<SpillTier>> SpillTier::open(SpillOptions options) {
  Result<std::shared_ptr<nvme::TierState>> state = nvme::TierState::open(
      options, [&options](const nvme::QueueOptions& queue, std::shared_ptr<nvme::IoSource> source, std::string& why) {
        return nvme::start_queue(queue, std::move(source), options.allow_io_uring, why);
      });
  if (!state) return std::move(state).failure();
  return std::unique_ptr<SpillTier>(new SpillTier(std::move(state).value()));
}

SpillTier::SpillTier(std::shared_ptr<nvme::TierState> state) : state_(std::move(state)) {}

SpillTier::~SpillTier() {
  state_->stop();
}

IoAlignment SpillTier::alignment() const noexcept {
  return state_->alignment();
}

Result<SpillTier::TransferId> SpillTier::write(uint64_t name, std::vector<IoPiece> pieces, WriteDone done) {
  return state_->write(name, std::move(pieces), std::move(done));
}

SpillTier::TransferId SpillTier::read(const SpilledItem& item, std::vector<IoPiece> pieces, Priority priority,
                                      ReadDone done) {
  return state_->read(item, std::move(pieces), priority, std::move(done));
}

void SpillTier::raise_priority(TransferId id) {
  state_->raise_priority(id);
}
void SpillTier::cancel(TransferId id) {
  const auto state = state_;  // a `done` may destroy the tier
  state->cancel(id);
}
SpillStats SpillTier::stats() const {
  return state_->stats();
}
Bytes SpillTier::bytes() const noexcept {
  return state_->bytes();
}
std::shared_ptr<SlabWatcher> SpillTier::watcher() const {
  class Watcher final : public SlabWatcher {
   public:
    explicit Watcher(std::weak_ptr<nvme::TierState> tier) noexcept : tier_(std::move(tier)) {}
    void came(std::byte* data, size_t bytes) noexcept override {
      if (const auto tier = tier_.lock()) tier->use_memory(data, bytes);
    }
    void goes(std::byte* data, size_t bytes) noexcept override {
      if (const auto tier = tier_.lock()) tier->forget_memory(data, bytes);
    }

   private:
    const std::weak_ptr<nvme::TierState> tier_;
  };
  return std::make_shared<Watcher>(state_);
}
void SpillTier::close() {
  state_->close();
}

}  // namespace ebbtide
