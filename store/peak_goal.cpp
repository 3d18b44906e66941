#include <ebbtide/store/op_name.h>
#include <ebbtide/store/peak_goal.h>

#include <algorithm>
#include <utility>

namespace ebbtide {
namespace {

/// A budget that still moves after so many passes follows what varies from pass to pass.
constexpr int kMostInARow = 8;
/// Of `most`: a budget that would change by less has settled.
constexpr int64_t kSettled = 32;

}  // namespace

PeakGoal::Looks PeakGoal::looks() const noexcept {
  if (pass_ == 0) return watches_ && manners_ == Manners::kPlain ? Looks::kRestarted : Looks::kUsage;
  if (!watches_) return Looks::kNone;
  return restarts_ ? Looks::kRestarted : Looks::kUsage;
}

void PeakGoal::note_shortage(Bytes budget) noexcept {
  most_ -= most_ / 20;
  budget_ = std::max(Bytes(0), std::min(budget, budget_ - budget_ / 20));
  watches_ = true;
  watched_in_a_row_ = 0;
}

void PeakGoal::begin(int64_t pass, const MemoryUsage& usage) {
  pass_ = pass;
  restarts_ = watches_ && (manners_ == Manners::kPlain || usage.now > most_ / 2);
  if (!watches_) return;
  const Bytes now = usage.now;
  if (!learned_) {
    // The backward will have gradients, as large as what they are of, which is here by now.
    reserve_ = std::min(now, most_ / 4) + margin();
    budget_ = std::max(Bytes(0), most_ - now - reserve_);
  } else if (at_begin_ && now > *at_begin_) {  // what an optimizer made at its first step
    budget_ = std::max(Bytes(0), budget_ - (now - *at_begin_));
  }
  at_begin_ = now;
  bounded_ = false;
  bound_ = most_;
  peak_ = {};
  others_ = Bytes(0);
}

void PeakGoal::look(int64_t pass, const MemoryUsage& usage, Held held, const Moment& moment) {
  const bool fresh = std::exchange(fresh_, looks() == Looks::kRestarted);
  if (shortages_ >= 0 && usage.shortages > shortages_) note_shortage(budget_);
  shortages_ = usage.shortages;
  const bool first = pass_ == 0;
  if (first) begin(pass, usage);
  if (watches_) stretch(fresh ? usage.peak : usage.now, held, first ? Moment() : moment);
  last_ = held;
  if (watches_ && usage.now > most_ / 2) restarts_ = true;
}

void PeakGoal::stretch(Bytes peak, Held held, const Moment& moment) {
  const Bytes here = std::min(last_.here, held.here);  // what died meanwhile may have died before the peak
  const Bytes alive = std::max(last_.alive, held.alive);
  const Bytes others = std::max(Bytes(0), peak - here);
  others_ = std::max(others_, others);
  if (peak > peak_.bytes) peak_ = {peak, here, moment};
  if (others + alive + reserve_ <= most_) return;
  bounded_ = true;
  bound_ = std::min(bound_, most_ - others);
  budget_ = std::max(Bytes(0), std::min(budget_, most_ - others - (learned_ ? margin() : reserve_)));
}

void PeakGoal::pass_ended(int64_t pass, const MemoryUsage& usage, Held held) {
  if (pass_ == 0) return;
  look(pass, usage, held, {Phase::kBackward, nullptr, nullptr});
  pass_ = 0;
  reserve_ = Bytes(0);
  if (!watches_) {
    // Restarted last when it was watched: the peak of all that came since.
    if (usage.peak > most_ && usage.peak > peak_.bytes) {
      peak_.bytes = usage.peak;
      watches_ = true;
      watched_in_a_row_ = 0;
    }
    return;
  }
  const Bytes wanted = bounded_ ? std::max(Bytes(0), bound_ - margin()) : most_;
  const bool first = !learned_;
  learned_ = true;
  const Bytes change = wanted > budget_ ? wanted - budget_ : budget_ - wanted;
  const bool settled = !first && change <= most_ / kSettled && peak_.bytes <= most_;
  if (settled || ++watched_in_a_row_ >= kMostInARow) {
    watches_ = peak_.bytes > most_ && budget_ > Bytes(0);
    watched_in_a_row_ = 0;
  }
  if (!settled) budget_ = wanted;
}

void PeakGoal::pass_died(int64_t pass) noexcept {
  if (pass != pass_) return;
  pass_ = 0;
}

std::string PeakGoal::name_of(const Moment& moment) {
  if (moment.phase == Phase::kBetween) return "between passes, as where an optimizer steps";
  std::string text = moment.phase == Phase::kForward ? "in the forward" : "in the backward";
  if (moment.op == nullptr) return text + (moment.phase == Phase::kForward ? ", at its end" : ", near its end");
  text += moment.phase == Phase::kForward ? ", up to where " : ", up to where what ";
  text += op_name(moment.op);
  text += moment.phase == Phase::kForward ? "'s result is saved" : " made is wanted back";
  if (moment.region != nullptr) text += " (" + moment.region->name + ")";
  return text;
}

}  // namespace ebbtide
