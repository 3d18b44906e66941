// A doubly linked list whose links lie in its elements: removal in constant time from wherever an element is, and no
// allocation.
#pragma once

#include <cassert>

namespace ebbtide {

template <class T>
class IntrusiveList;

/// Base of what can be in one IntrusiveList<T> at a time.
template <class T>
class ListLink {
 public:
  ListLink() noexcept = default;
  ListLink(const ListLink&) = delete;
  ListLink& operator=(const ListLink&) = delete;
  ~ListLink() { assert(list_ == nullptr); }

 private:
  friend class IntrusiveList<T>;
  IntrusiveList<T>* list_ = nullptr;
  T* next_ = nullptr;
  T* previous_ = nullptr;
};

/// Owns nothing.
/// Threads: none of its own; its owner's lock.
template <class T>
class IntrusiveList {
 public:
  bool empty() const noexcept { return front_ == nullptr; }
  T* front() const noexcept { return front_; }
  T* back() const noexcept { return back_; }
  static T* next(const T& element) noexcept { return link(element).next_; }
  bool contains(const T& element) const noexcept { return link(element).list_ == this; }
  /// The list that it is in; null where it is in none.
  static const IntrusiveList* list_of(const T& element) noexcept { return link(element).list_; }

  /// REQUIRES: element is in no list.
  void push_back(T& element) noexcept { insert_between(back_, element, nullptr); }
  void push_front(T& element) noexcept { insert_between(nullptr, element, front_); }

  /// REQUIRES: contains(element).
  void remove(T& element) noexcept {
    auto& here = link(element);
    assert(here.list_ == this);
    (here.previous_ != nullptr ? link(*here.previous_).next_ : front_) = here.next_;
    (here.next_ != nullptr ? link(*here.next_).previous_ : back_) = here.previous_;
    here.list_ = nullptr;
    here.next_ = here.previous_ = nullptr;
  }

 private:
  static ListLink<T>& link(T& element) noexcept { return element; }
  static const ListLink<T>& link(const T& element) noexcept { return element; }

  void insert_between(T* previous, T& element, T* next) noexcept {
    auto& here = link(element);
    assert(here.list_ == nullptr);
    here.list_ = this;
    here.previous_ = previous;
    here.next_ = next;
    (previous != nullptr ? link(*previous).next_ : front_) = &element;
    (next != nullptr ? link(*next).previous_ : back_) = &element;
  }

  T* front_ = nullptr;
  T* back_ = nullptr;
};

}  // namespace ebbtide
