#include <ebbtide/transfer/bandwidth.h>

#include <cmath>

namespace ebbtide {
namespace {

constexpr Bytes kLarge = MiB(1);
/// Of large transfers so many bytes forget most of what was before: some milliseconds of a fast link.
constexpr double kForgets = 256 << 20;

}  // namespace

void Bandwidth::add(Bytes transfer, Bytes moved, double seconds, LinkUse use) noexcept {
  static constexpr double kWeight = 0.2;  // of the newest: five transfers forget most of what was before
  if (moved.count() <= 0 || !(seconds > 0)) return;
  double& mean = means(use)[size_class(transfer)];
  const double now = static_cast<double>(moved.count()) / seconds;
  mean = mean > 0 ? mean + kWeight * (now - mean) : now;
  if (transfer < kLarge) return;
  double& large = large_[static_cast<size_t>(use)];
  const double weight = large > 0 ? -std::expm1(-static_cast<double>(moved.count()) / kForgets) : 1;
  large += weight * (1 / now - large);
}

std::optional<double> Bandwidth::large(LinkUse use) const noexcept {
  const double seconds = large_[static_cast<size_t>(use)];
  return seconds > 0 ? std::optional(1 / seconds) : std::nullopt;
}

std::optional<double> Bandwidth::bytes_per_second(Bytes bytes, LinkUse use) const noexcept {
  const LinkUse other = use == LinkUse::kAlone ? LinkUse::kDuplex : LinkUse::kAlone;
  for (const LinkUse candidate : {use, other}) {
    if (const double mean = nearest(means_[static_cast<size_t>(candidate)], size_class(bytes)); mean > 0) return mean;
  }
  return std::nullopt;
}

double Bandwidth::nearest(const Means& means, size_t size_class) noexcept {
  for (size_t distance = 0; distance < kClasses; ++distance) {
    if (size_class + distance < kClasses && means[size_class + distance] > 0) return means[size_class + distance];
    if (size_class >= distance && means[size_class - distance] > 0) return means[size_class - distance];
  }
  return 0;
}

}  // namespace ebbtide
