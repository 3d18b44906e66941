// XXH3-64, compiled for what processors have.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ebbtide::nvme {

struct HashedRun {
  const void* data;
  size_t bytes;
};

/// XXH3-64 of the runs, one after another. The same for every processor.
uint64_t xxh3_portable(const HashedRun* runs, size_t count, uint64_t seed) noexcept;

#ifdef __x86_64__
/// REQUIRES: has_avx2().
uint64_t xxh3_avx2(const HashedRun* runs, size_t count, uint64_t seed) noexcept;
inline bool has_avx2() noexcept {
  return __builtin_cpu_supports("avx2") != 0;
}
#endif

}  // namespace ebbtide::nvme
