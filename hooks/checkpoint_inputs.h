// The tensors among a function's arguments.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

namespace ebbtide {

/// Finds tensors in vectors, arrays, maps' values, optionals, pairs and tuples, however nested; other values have none.
class CheckpointInputs {
 public:
  /// Appends them to `tensors`, undefined ones too.
  template <class Value>
  static void list(Value& value, std::vector<at::Tensor>& tensors) {
    visit(value, [&](at::Tensor& tensor) { tensors.push_back(tensor); });
  }
  /// Puts `tensors` in their places, in the order of list(). REQUIRES: as many.
  template <class Value>
  static void put(Value& value, const std::vector<at::Tensor>& tensors) {
    size_t next = 0;
    visit(value, [&](at::Tensor& tensor) { tensor = tensors[next++]; });
  }

 private:
  template <class Value, class Visitor>
  static void visit(Value& value, const Visitor& visitor) {
    if constexpr (std::is_base_of_v<at::Tensor, Value>)
      visitor(value);
    else
      visit_inside(value, visitor);
  }
  template <class Value, class Visitor>
  static void visit_inside(Value&, const Visitor&) {}
  template <class Value, class Allocator, class Visitor>
  requires(!std::is_same_v<Value, bool>) static void visit_inside(std::vector<Value, Allocator>& values,
                                                                  const Visitor& visitor) {
    for (Value& value : values) visit(value, visitor);
  }
  template <class Key, class Value, class Visitor>
  static void visit_inside(std::map<Key, Value>& values, const Visitor& visitor) {
    for (auto& [key, value] : values) visit(value, visitor);
  }
  template <class Value, class Visitor>
  static void visit_inside(std::optional<Value>& value, const Visitor& visitor) {
    if (value) visit(*value, visitor);
  }
  template <class First, class Second, class Visitor>
  static void visit_inside(std::pair<First, Second>& value, const Visitor& visitor) {
    visit(value.first, visitor);
    visit(value.second, visitor);
  }
  template <class... Values, class Visitor>
  static void visit_inside(std::tuple<Values...>& values, const Visitor& visitor) {
    std::apply([&](Values&... each) { (visit(each, visitor), ...); }, values);
  }
};

}  // namespace ebbtide
