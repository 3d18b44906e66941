// A list that mostly has one element.
#pragma once

#include <cstddef>
#include <initializer_list>
#include <optional>
#include <utility>
#include <vector>

namespace ebbtide {

/// As a vector, but a single element takes no memory of the heap. Moved from, it is empty.
/// Lifetime: elements move when the number grows from one to two, and as in a vector.
template <class T>
class Few {
 public:
  Few() noexcept = default;
  Few(std::initializer_list<T> elements) {
    for (const T& element : elements) push_back(element);
  }
  Few(const Few&) = default;
  Few& operator=(const Few&) = default;
  Few(Few&& other) noexcept : one_(std::exchange(other.one_, std::nullopt)), many_(std::exchange(other.many_, {})) {}
  Few& operator=(Few&& other) noexcept {
    one_.reset();
    if (other.one_) one_.emplace(std::move(*other.one_));
    other.one_.reset();
    many_ = std::exchange(other.many_, {});
    return *this;
  }

  void push_back(T element) {
    if (empty()) {
      one_.emplace(std::move(element));
      return;
    }
    if (one_) {
      many_.push_back(std::move(*one_));
      one_.reset();
    }
    many_.push_back(std::move(element));
  }
  /// Drops those after the first `size`. REQUIRES: there are as many.
  void shrink(size_t size) noexcept {
    if (size == 0) one_.reset();
    while (many_.size() > size) many_.pop_back();
    keep_one();
  }
  void clear() noexcept { shrink(0); }
  /// Drops those that are equal to `element`.
  void erase(const T& element) noexcept {
    if (one_ && *one_ == element) one_.reset();
    std::erase(many_, element);
    keep_one();
  }

  size_t size() const noexcept { return one_ ? 1 : many_.size(); }
  bool empty() const noexcept { return size() == 0; }
  T* data() noexcept { return one_ ? &*one_ : many_.data(); }
  const T* data() const noexcept { return one_ ? &*one_ : many_.data(); }
  T* begin() noexcept { return data(); }
  T* end() noexcept { return data() + size(); }
  const T* begin() const noexcept { return data(); }
  const T* end() const noexcept { return data() + size(); }
  const T& operator[](size_t index) const noexcept { return data()[index]; }
  T& front() noexcept { return *data(); }
  const T& front() const noexcept { return *data(); }

 private:
  void keep_one() noexcept {
    if (many_.size() != 1) return;
    one_.emplace(std::move(many_.front()));
    many_.clear();
  }

  std::optional<T> one_;  // if it is the only one
  std::vector<T> many_;   // all, if there are several
};

}  // namespace ebbtide
