#include <ebbtide/nvme/checksum.h>

namespace ebbtide::nvme {
namespace {

auto fastest() noexcept {
#ifdef __x86_64__
  if (has_avx2()) return &xxh3_avx2;
#endif
  return &xxh3_portable;
}

}  // namespace

uint64_t checksum(const ChunkIdentity& identity, std::span<const HashedRun> runs) noexcept {
  static const auto hash = fastest();
  const uint64_t words[] = {identity.name, identity.generation, identity.offset};
  const HashedRun named{words, sizeof words};
  return hash(runs.data(), runs.size(), xxh3_portable(&named, 1, 0));
}

}  // namespace ebbtide::nvme
