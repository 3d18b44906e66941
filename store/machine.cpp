#include <ebbtide/store/machine.h>

#include <algorithm>

namespace ebbtide {
namespace {

constexpr Bytes kSmall = KiB(64);
constexpr Bytes kLarge = MiB(16);

/// Of what a direction reaches alone, while the other is busy too, where that was not measured: an H100 on PCIe 5 x16
/// moves 99.5 of 109.7 GB/s (bench/results/transfer-h100.json).
constexpr double kDuplexShare = 0.907;

std::optional<double> large(const Bandwidth& measured, LinkUse use) noexcept {
  if (const auto speed = measured.large(use)) return speed;
  return measured.bytes_per_second(kLarge, use);
}

std::optional<LaneSpeed> speed_of(const Bandwidth& measured) noexcept {
  const auto alone = large(measured, LinkUse::kAlone);
  if (!alone) return std::nullopt;
  const double duplex =
      measured.measured(LinkUse::kDuplex) ? *large(measured, LinkUse::kDuplex) : kDuplexShare * *alone;
  return LaneSpeed{*alone, std::min(*alone, duplex)};
}

/// What a small transfer takes more than its bytes need.
double latency_of(const Bandwidth& measured, double large) noexcept {
  const double small = measured.bytes_per_second(kSmall, LinkUse::kAlone).value_or(large);
  return std::max(0.0, static_cast<double>(kSmall.count()) * (1 / small - 1 / large));
}

}  // namespace

std::optional<LinkModel> LinkModel::of(const LinkBandwidth& measured) noexcept {
  const auto out = speed_of(measured.out);
  const auto in = speed_of(measured.in);
  if (!out || !in) return std::nullopt;
  return LinkModel{*out, *in, std::max(latency_of(measured.out, out->alone), latency_of(measured.in, in->alone))};
}

}  // namespace ebbtide
