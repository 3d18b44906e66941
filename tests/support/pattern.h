// Bytes that tell where they should be: a word of each from a seed and its place, the same on host and device.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace ebbtide::test {

/// tests/gpu/kernels.h computes the same.
constexpr uint32_t pattern_word(uint32_t seed, uint32_t index) noexcept {
  uint32_t x = index * 0x9E3779B1u + seed;
  x ^= x >> 15;
  x *= 0x2C1B3C6Du;
  return x ^ (x >> 12);
}

/// REQUIRES: whole words.
inline void write_pattern(std::byte* to, size_t bytes, uint32_t seed) noexcept {
  for (uint32_t i = 0; i < bytes / 4; ++i) {
    const uint32_t word = pattern_word(seed, i);
    std::memcpy(to + size_t{4} * i, &word, 4);
  }
}

/// How many words are not the pattern's from its word `first` on.
inline uint32_t count_wrong(const std::byte* from, size_t bytes, uint32_t seed, size_t first = 0) noexcept {
  uint32_t wrong = 0;
  for (uint32_t i = 0; i < bytes / 4; ++i) {
    uint32_t word = 0;
    std::memcpy(&word, from + size_t{4} * i, 4);
    wrong += word != pattern_word(seed, static_cast<uint32_t>(first) + i);
  }
  return wrong;
}

}  // namespace ebbtide::test
