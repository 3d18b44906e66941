#include <ebbtide/pinned_pool/pool.h>

#include <ebbtide/pinned_pool/pool_state.h>

#include <utility>

namespace ebbtide {

Result<std::unique_ptr<PinnedPool>> PinnedPool::create(PoolOptions options) {
  auto state = pinned_pool::PoolState::create(std::move(options));
  if (!state) return std::move(state).failure();
  return std::unique_ptr<PinnedPool>(new PinnedPool(std::move(state).value()));
}

PinnedPool::PinnedPool(std::shared_ptr<pinned_pool::PoolState> state) : state_(std::move(state)) {}
PinnedPool::~PinnedPool() = default;

Result<Block> PinnedPool::acquire(const Request& request) {
  auto lent = state_->acquire(request);
  if (!lent) return std::move(lent).failure();
  return Block(state_, lent.value().way_back, std::move(lent.value().chunks), request.bytes, lent.value().node);
}

Bytes PinnedPool::trim() {
  return state_->trim();
}
PoolStats PinnedPool::stats() const {
  return state_->stats();
}
bool PinnedPool::some_pageable() const noexcept {
  return state_->some_pageable();
}

}  // namespace ebbtide
