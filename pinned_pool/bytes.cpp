#include <ebbtide/pinned_pool/bytes.h>

#include <array>
#include <cstdio>

namespace ebbtide {

std::string to_string(Bytes bytes) {
  static constexpr std::array<const char*, 5> kUnits = {"B", "KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes.count());
  size_t unit = 0;
  while ((value >= 1024 || value <= -1024) && unit + 1 < kUnits.size()) {
    value /= 1024;
    ++unit;
  }
  std::array<char, 48> text{};
  const bool whole = value == static_cast<double>(static_cast<int64_t>(value));
  std::snprintf(text.data(), text.size(), whole ? "%.0f %s" : value < 10 ? "%.2f %s" : "%.1f %s", value, kUnits[unit]);
  return text.data();
}

}  // namespace ebbtide
