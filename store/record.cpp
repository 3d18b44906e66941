#include <ebbtide/store/record.h>
#include <ebbtide/store/store_core.h>

#include <cassert>
#include <utility>

namespace ebbtide {

RecordLayout RecordLayout::of(const std::byte* data, Bytes bytes, IoAlignment alignment) noexcept {
  // 64: torch aligns storages to it, and CPU kernels choose their path by it.
  const size_t modulus = std::max<size_t>({64, alignment.memory, alignment.length});
  const size_t size = static_cast<size_t>(bytes.count());
  RecordLayout layout;
  layout.modulus = modulus;
  layout.remainder = reinterpret_cast<uintptr_t>(data) % modulus;
  layout.head = std::min(size, (modulus - layout.remainder) % modulus);
  layout.middle = (size - layout.head) / modulus * modulus;
  layout.tail = size - layout.head - layout.middle;
  return layout;
}

Record::Record(std::shared_ptr<Pass> pass, uint64_t id) noexcept : pass_(std::move(pass)), id_(id) {}

Record::~Record() {
  core().forget(*this);
}

const std::shared_ptr<StoreCore>& Record::shared_core() const noexcept {
  return pass_->core_;
}

void Record::become(RecordState next) noexcept {
  assert(may_become(state_, next));
  core().below_ += (next == RecordState::kLower) - (state_ == RecordState::kLower);
  if (core().trace_) core().trace_transfer_locked(*this, next);
  state_ = next;
}

}  // namespace ebbtide
