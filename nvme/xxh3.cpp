// Also compiled as xxh3_avx2.cpp. Nothing but xxhash is included here: an inline function of the standard library,
// compiled for AVX2, might be the one that the linker keeps for all.
#include <ebbtide/nvme/xxh3.h>

#define XXH_INLINE_ALL  // no symbol of xxhash leaves this file, so none can clash with another copy in the process
#include <xxhash.h>

#ifndef EBBTIDE_XXH3_NAME
#define EBBTIDE_XXH3_NAME xxh3_portable
#endif

uint64_t ebbtide::nvme::EBBTIDE_XXH3_NAME(const HashedRun* runs, size_t count, uint64_t seed) noexcept {
  if (count == 1) return XXH3_64bits_withSeed(runs[0].data, runs[0].bytes, seed);
  XXH3_state_t state;
  XXH3_INITSTATE(&state);
  XXH3_64bits_reset_withSeed(&state, seed);
  for (size_t i = 0; i < count; ++i) XXH3_64bits_update(&state, runs[i].data, runs[i].bytes);
  return XXH3_64bits_digest(&state);
}
