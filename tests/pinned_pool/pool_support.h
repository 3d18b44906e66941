// Pools for tests, and blocks of which no refusal is expected.
#pragma once

#include <ebbtide/pinned_pool/pool.h>

#include <cstddef>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <utility>

namespace ebbtide::test {

inline PoolOptions small(Bytes capacity, Bytes slab) {
  return {.capacity = capacity, .slab_bytes = slab, .keep_spare = false};
}

inline std::unique_ptr<PinnedPool> make(PoolOptions options) {
  auto pool = PinnedPool::create(std::move(options));
  if (!pool) throw std::runtime_error(pool.failure().message);
  return std::move(pool).value();
}

inline Block get(PinnedPool& pool, Bytes bytes, bool contiguous = false) {
  auto block = pool.acquire({.bytes = bytes, .contiguous = contiguous});
  if (!block) throw std::runtime_error(block.failure().message);
  return std::move(block).value();
}

inline size_t sum(const Block& block) {
  return std::accumulate(block.chunks().begin(), block.chunks().end(), size_t{0},
                         [](size_t n, const Chunk& c) { return n + c.bytes; });
}

}  // namespace ebbtide::test
