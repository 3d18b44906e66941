#include <ebbtide/store/machine.h>

#include <algorithm>

namespace ebbtide {
namespace {

constexpr Bytes kSmall = KiB(64);
constexpr Bytes kLarge = MiB(16);

std::optional<LaneSpeed> speed_of(const Bandwidth& measured) noexcept {
  const auto alone = measured.bytes_per_second(kLarge, LinkUse::kAlone);
  const auto duplex = measured.bytes_per_second(kLarge, LinkUse::kDuplex);
  if (!alone || !duplex) return std::nullopt;
  return LaneSpeed{*alone, std::min(*alone, *duplex)};
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
