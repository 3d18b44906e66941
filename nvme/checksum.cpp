#include <ebbtide/nvme/checksum.h>

#define XXH_INLINE_ALL  // no symbol of xxhash leaves this file, so none can clash with another copy in the process
#include <xxhash.h>

namespace ebbtide::nvme {

uint64_t checksum(const ChunkIdentity& identity, std::span<const std::span<const std::byte>> parts) noexcept {
  const uint64_t words[] = {identity.name, identity.generation, identity.offset};
  const XXH64_hash_t seed = XXH3_64bits(words, sizeof words);
  if (parts.size() == 1) return XXH3_64bits_withSeed(parts[0].data(), parts[0].size(), seed);

  XXH3_state_t state;
  XXH3_INITSTATE(&state);
  XXH3_64bits_reset_withSeed(&state, seed);
  for (const auto& part : parts) XXH3_64bits_update(&state, part.data(), part.size());
  return XXH3_64bits_digest(&state);
}

}  // namespace ebbtide::nvme
