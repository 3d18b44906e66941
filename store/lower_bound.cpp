#include <ebbtide/store/lower_bound.h>

#include <algorithm>
#include <limits>
#include <queue>
#include <utility>
#include <vector>

namespace ebbtide {
namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();

/// A record that counts: packed in the forward, in the budget.
struct Load {
  double bytes = 0;   // that leave, if it does
  double redo_s = 0;  // kNever where it cannot be redone
  bool returns = false;
  double ratio() const noexcept { return redo_s / bytes; }
};

struct Forward {
  std::vector<Load> records;
  std::vector<std::pair<uint32_t, double>> packs;  // of `records`, and when
  double seconds = 0;                              // until the first unpack
};

Forward forward_of(const Profile& profile, uint32_t device, bool recompute) {
  std::vector<bool> unpacked(profile.records.size()), dies(profile.records.size());
  Forward forward;
  forward.seconds = profile.seconds;
  bool backward = false;
  for (const ProfiledStep& step : profile.steps) {
    if (step.what == ProfiledStep::What::kUnpack) {
      if (!std::exchange(backward, true)) forward.seconds = step.at;
      unpacked[step.record] = true;
    }
    if (step.what == ProfiledStep::What::kDeath && !backward) dies[step.record] = true;
  }
  for (const ProfiledStep& step : profile.steps) {
    if (step.what == ProfiledStep::What::kUnpack) break;
    const ProfiledRecord& record = profile.records[step.record];
    if (step.what != ProfiledStep::What::kPack || dies[step.record] || record.device != device) continue;
    if (record.mobility == Mobility::kElsewhere || record.moved == Bytes(0)) continue;
    Load load{static_cast<double>(record.moved.count()), kNever, unpacked[step.record]};
    if (recompute && record.recipe && record.mobility == Mobility::kMovable)
      load.redo_s = load.returns ? record.recipe->seconds : 0;
    forward.packs.emplace_back(static_cast<uint32_t>(forward.records.size()), step.at);
    forward.records.push_back(load);
  }
  return forward;
}

/// Where `room` bytes stay and the others leave at `speed` from the first pack on: what stalls and redos must take.
/// Constraints are nested, one a pack, so that the cheapest remedy of all so far is the best for each in turn.
double leave_in_time(const Forward& forward, double room, double speed) {
  using Item = std::pair<double, uint32_t>;  // ratio, record
  std::priority_queue<Item, std::vector<Item>, std::greater<>> cheapest;
  std::vector<double> there(forward.records.size());  // of each, not redone
  double load = 0, stall = 0, redo = 0;
  for (const auto& [record, at] : forward.packs) {
    const Load& packed = forward.records[record];
    there[record] = packed.bytes;
    load += packed.bytes;
    if (packed.ratio() * speed < 1 && packed.redo_s < kNever) cheapest.emplace(packed.ratio(), record);
    for (double over = load - room - speed * (at + stall); over > 0;) {
      if (cheapest.empty()) {
        if (speed > 0) stall += over / speed;
        break;
      }
      const auto [ratio, best] = cheapest.top();
      const double part = std::min(over, there[best]);
      there[best] -= part;
      load -= part;
      over -= part;
      redo += ratio * part;
      if (there[best] <= 0) cheapest.pop();
    }
  }
  return stall + redo;
}

/// Redo seconds by bytes redone, the cheapest first: convex.
class RedoCost {
 public:
  explicit RedoCost(std::vector<Load> records) {
    for (Load& load : records)
      if (!load.returns) load.redo_s = 0;  // what need not come back is as good as redone
    std::erase_if(records, [](const Load& load) { return load.redo_s == kNever; });
    std::ranges::sort(records, {}, &Load::ratio);
    for (const Load& load : records) {
      bytes_.push_back(bytes_.back() + load.bytes);
      seconds_.push_back(seconds_.back() + load.redo_s);
    }
  }
  double most() const noexcept { return bytes_.back(); }
  double of(double bytes) const noexcept {
    const auto above = static_cast<size_t>(std::ranges::lower_bound(bytes_, bytes) - bytes_.begin());
    if (above == 0) return 0;
    if (above == bytes_.size()) return seconds_.back();
    const double part = (bytes - bytes_[above - 1]) / (bytes_[above] - bytes_[above - 1]);
    return seconds_[above - 1] + part * (seconds_[above] - seconds_[above - 1]);
  }

 private:
  std::vector<double> bytes_{0}, seconds_{0};
};

struct Speeds {
  double out, in;
  double compute_s_per_byte = 0;
};

/// As leave_in_time(), but for the whole of what leaves, and its way back.
double leave_and_return(const Forward& forward, const RedoCost& redo, double seconds, double room, Speeds speeds) {
  double all = 0;
  for (const Load& load : forward.records) all += load.bytes;
  const double most = std::max(0.0, all - room);
  const auto excess = [&](double moved) {
    const double copying = speeds.compute_s_per_byte * moved;
    const double back = seconds - forward.seconds + copying + redo.of(all - room - moved);
    return std::max(forward.seconds + copying, moved / speeds.out) + std::max(back, moved / speeds.in) - seconds;
  };
  double low = std::max(0.0, most - redo.most()), high = most;  // convex between them
  for (int i = 0; i < 100; ++i) {
    const double third = (high - low) / 3;
    if (excess(low + third) < excess(high - third))
      high -= third;
    else
      low += third;
  }
  return std::max(0.0, excess((low + high) / 2));
}

}  // namespace

double lower_bound(const Profile& profile, const Machine& machine, const Budgets& budgets, uint32_t device,
                   bool recompute) {
  const Forward forward = forward_of(profile, device, recompute);
  const RedoCost redo(forward.records);
  const auto room = static_cast<double>(budgets.device.count());
  double excess = 0;
  const auto consider = [&](double staying, Speeds speeds) {
    // What copies take of the computation gives them that much more time.
    const double taken = speeds.out * speeds.compute_s_per_byte;
    if (taken < 1) excess = std::max(excess, leave_in_time(forward, staying, speeds.out / (1 - taken)));
    excess = std::max(excess, leave_and_return(forward, redo, profile.seconds, staying, speeds));
  };
  if (machine.link) consider(room, {machine.link->out.alone, machine.link->in.alone});
  if (machine.disk) {
    const auto [write, read, latency_s, compute_s_per_byte] = *machine.disk;
    if (machine.link)
      consider(room + static_cast<double>(budgets.host.count()), {write, read});
    else
      consider(room, {write, read, compute_s_per_byte});
  }
  if (!machine.link && !machine.disk) excess = leave_in_time(forward, room, 0);
  const double rounding = 1e-9 * (profile.seconds + excess);  // what the arithmetic may have added
  return profile.seconds + std::max(0.0, excess - rounding);
}

}  // namespace ebbtide
