#include <ebbtide/pinned_pool/block.h>

#include <ebbtide/pinned_pool/pool_state.h>

#include <utility>

namespace ebbtide {

Block::Block(std::shared_ptr<pinned_pool::PoolState> pool, pinned_pool::ReturnedBlock* way_back, Few<Chunk> chunks,
             Bytes size, NumaNode node) noexcept
    : pool_(std::move(pool)), way_back_(way_back), chunks_(std::move(chunks)), size_(size), node_(node) {}

Block::Block(Block&& other) noexcept
    : pool_(std::move(other.pool_)),
      way_back_(std::exchange(other.way_back_, nullptr)),
      chunks_(std::move(other.chunks_)),
      size_(std::exchange(other.size_, Bytes())),
      node_(std::exchange(other.node_, kAnyNode)) {}

Block& Block::operator=(Block&& other) noexcept {
  if (this == &other) return *this;
  release();
  pool_ = std::move(other.pool_);
  way_back_ = std::exchange(other.way_back_, nullptr);
  chunks_ = std::move(other.chunks_);
  size_ = std::exchange(other.size_, Bytes());
  node_ = std::exchange(other.node_, kAnyNode);
  return *this;
}

Block::~Block() {
  release();
}

void Block::release() noexcept {
  if (pool_) pool_->release(way_back_, std::move(chunks_), size_, node_);
}

}  // namespace ebbtide
