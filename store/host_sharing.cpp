// How the accelerators of a store share host memory. Each is sure of a share of it, in proportion to what its last pass
// could not keep; what no share takes goes to whoever comes first. So one that saves much leaves room for one that saves
// little, whichever packs first.
#include <ebbtide/store/store_core.h>

#include <algorithm>

namespace ebbtide {
namespace {

/// A device that so many passes in a row saved nothing on is kept no share for.
constexpr int64_t kPassesToForget = 8;

}  // namespace

/// All that it wants, where there is enough for all.
Bytes StoreCore::host_share_locked(const DeviceTier& tier) const noexcept {
  Bytes wanted;
  for (const DeviceTier& each : tiers_) wanted += each.wants_below;
  if (wanted <= host_budget_) return tier.wants_below;
  const double share = static_cast<double>(tier.wants_below.count()) / static_cast<double>(wanted.count());
  return Bytes(static_cast<int64_t>(share * static_cast<double>(host_budget_.count())));
}

/// Whether `more` of this device's would lie in what others are sure of. A device that has nothing there may always try:
/// no record is so large that it never gets in.
bool StoreCore::host_is_promised_locked(const DeviceTier& tier, Bytes more) const noexcept {
  if (tier.host_bytes == Bytes(0)) return false;
  Bytes promised;
  for (const DeviceTier& other : tiers_)
    if (&other != &tier) promised += std::max(Bytes(0), host_share_locked(other) - other.host_bytes);
  return promised > Bytes(0) && host_bytes_ + more + promised > host_budget_;
}

/// What a plan may reckon with: what the largest passes leave each device to put elsewhere, which stays the same from step
/// to step where the steps do.
Bytes StoreCore::host_for_plans_locked(const DeviceTier& tier) const noexcept {
  const auto to_put = [](const DeviceTier& each) {
    return each.link ? std::max(Bytes(0), each.largest_pass_saved - each.budget) : Bytes(0);
  };
  Bytes others;
  for (const DeviceTier& each : tiers_)
    if (&each != &tier) others += to_put(each);
  if (!tier.link || others == Bytes(0)) return host_budget_;
  const Bytes mine = to_put(tier);
  if (mine + others <= host_budget_) return host_budget_ - others;
  const double share = static_cast<double>(mine.count()) / static_cast<double>((mine + others).count());
  return Bytes(static_cast<int64_t>(share * static_cast<double>(host_budget_.count())));
}

/// REQUIRES: the first backward of the pass has just ended.
void StoreCore::note_wants_locked(const Pass& pass) noexcept {
  for (DeviceTier& tier : tiers_) {
    if (!tier.link) continue;
    const Pass::OnDevice on = pass.on(tier.index);
    if (on.saved > Bytes(0)) {
      tier.passes_without_it = 0;
      tier.wants_below = std::max(Bytes(0), on.saved - on.redoable - tier.budget);
    } else if (++tier.passes_without_it >= kPassesToForget) {
      tier.wants_below = Bytes(0);
    }
  }
  note_host_room_locked();
}

void StoreCore::note_host_room_locked() noexcept {
  ++host_rooms_;
  for (DeviceTier& tier : tiers_) tier.host_full = tier.lifts_full = false;
}

}  // namespace ebbtide
