#include <ebbtide/pinned_pool/page.h>
#include <ebbtide/store/host_copy.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <cstdlib>

namespace ebbtide {

std::shared_ptr<HostCopy> HostCopy::make(const CachedAllocator<HostCopy>& objects, PinnedPool& pool, Bytes bytes,
                                         NumaNode node, From from, const std::shared_ptr<HostRegistrar>& registrar) {
  const size_t page = pinned_pool::page_bytes();
  const size_t whole_size = (static_cast<size_t>(bytes.count()) + page - 1) / page * page;
  const Bytes whole(static_cast<int64_t>(whole_size));
  const auto copy = std::allocate_shared<HostCopy>(objects, Made());
  copy->bytes_ = bytes;
  if (auto block = pool.acquire({.bytes = whole, .node = node, .may_grow = from != From::kReadyPool}); block.ok()) {
    copy->block_ = std::move(block).value();
    for (const Chunk& chunk : copy->block_.chunks()) copy->pieces_.push_back({chunk.data, chunk.bytes});
    return copy;
  }
  if (from != From::kPoolOrSystem) return nullptr;
  copy->heap_ = {static_cast<std::byte*>(std::aligned_alloc(page, whole_size)), std::free};
  if (!copy->heap_) return nullptr;
  copy->pieces_.push_back({copy->heap_.get(), whole_size});
  if (registrar && registrar->pin(copy->heap_.get(), whole_size).ok()) copy->pinned_by_ = registrar;
  return copy;
}

uint64_t HostCopy::fingerprint() const {
  XXH3_state_t state;
  XXH3_INITSTATE(&state);
  XXH3_64bits_reset(&state);
  auto left = static_cast<size_t>(bytes_.count());
  for (const IoPiece& piece : pieces_) {
    const size_t part = std::min(piece.bytes, left);
    XXH3_64bits_update(&state, piece.data, part);
    left -= part;
  }
  return XXH3_64bits_digest(&state);
}

HostCopy::~HostCopy() {
  if (pinned_by_) pinned_by_->unpin(heap_.get(), pieces_.front().bytes);
}

}  // namespace ebbtide
