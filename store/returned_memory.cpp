#include <ebbtide/pinned_pool/page.h>
#include <ebbtide/pinned_pool/pool.h>
#include <ebbtide/store/returned_memory.h>
#include <ebbtide/store/store_core.h>

#include <cstdlib>

namespace ebbtide {

std::shared_ptr<ReturnedMemory> ReturnedMemory::make(std::shared_ptr<StoreCore> core, PinnedPool* pool, Bytes bytes,
                                                     size_t modulus, size_t remainder, From from) {
  const size_t page = pinned_pool::page_bytes();
  const size_t whole = (static_cast<size_t>(bytes.count()) + remainder + modulus - 1) / modulus * modulus;
  std::shared_ptr<ReturnedMemory> memory(new ReturnedMemory);
  std::byte* base = nullptr;
  if (pool != nullptr) {
    auto block = pool->acquire({.bytes = Bytes(static_cast<int64_t>(whole)),
                                .node = core->host_node(),
                                .contiguous = true,
                                .may_grow = from == From::kPoolOrSystem});
    if (block.ok()) {
      memory->block_ = std::move(block).value();
      base = memory->block_.chunks().front().data;
    }
  }
  if (base == nullptr && from == From::kPoolOrSystem) {
    memory->heap_ = {static_cast<std::byte*>(std::aligned_alloc(page, (whole + page - 1) / page * page)), std::free};
    base = memory->heap_.get();
  }
  if (base == nullptr) return nullptr;
  memory->core_ = std::move(core);
  memory->data_ = base + remainder;
  memory->bytes_ = bytes;
  return memory;
}

void ReturnedMemory::hand_over() noexcept {
  if (!handed_over_.exchange(true)) core_->note_handed_over(bytes_);
}

ReturnedMemory::~ReturnedMemory() {
  if (handed_over_) core_->note_handed_over(Bytes(0) - bytes_);
}

}  // namespace ebbtide
