// The pieces of one copy job.
#pragma once

#include <cstddef>
#include <initializer_list>
#include <utility>
#include <vector>

namespace ebbtide {

struct CopyChunk {
  void* to = nullptr;
  const void* from = nullptr;
  size_t bytes = 0;
};

/// As a vector, but a single chunk, which is what most tensors are, takes no memory of the heap.
class CopyChunks {
 public:
  CopyChunks() noexcept = default;
  CopyChunks(std::initializer_list<CopyChunk> chunks) {
    for (const CopyChunk& chunk : chunks) push_back(chunk);
  }
  CopyChunks(CopyChunks&& other) noexcept
      : size_(std::exchange(other.size_, 0)), one_(other.one_), many_(std::move(other.many_)) {}
  CopyChunks& operator=(CopyChunks&& other) noexcept {
    size_ = std::exchange(other.size_, 0);
    one_ = other.one_;
    many_ = std::move(other.many_);
    return *this;
  }

  void push_back(const CopyChunk& chunk) {
    if (size_ == 0) {
      one_ = chunk;
    } else {
      if (size_ == 1) many_.assign(1, one_);
      many_.push_back(chunk);
    }
    ++size_;
  }
  /// Drops those after the first `size`. REQUIRES: there are as many.
  void shrink(size_t size) noexcept {
    if (size == 1 && size_ > 1) one_ = many_.front();
    size_ = size;
    if (size_ <= 1)
      many_.clear();
    else
      many_.resize(size_);
  }

  size_t size() const noexcept { return size_; }
  const CopyChunk& operator[](size_t index) const noexcept { return begin()[index]; }
  const CopyChunk* begin() const noexcept { return size_ > 1 ? many_.data() : &one_; }
  const CopyChunk* end() const noexcept { return begin() + size_; }

 private:
  size_t size_ = 0;
  CopyChunk one_;                // if it is the only one
  std::vector<CopyChunk> many_;  // all, if there are several
};

}  // namespace ebbtide
