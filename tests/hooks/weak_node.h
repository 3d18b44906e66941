// A weak reference to a node of the graph, in whichever way torch counts them: it changed after 2.12.
#pragma once

#include <c10/util/intrusive_ptr.h>
#include <torch/csrc/autograd/edge.h>

#include <memory>
#include <utility>

namespace ebbtide::test {

template <class Node>
std::weak_ptr<Node> weak_of(const std::shared_ptr<Node>&);
template <class Node>
c10::weak_intrusive_ptr<Node> weak_of(const c10::intrusive_ptr<Node>&);

using WeakNode = decltype(weak_of(std::declval<torch::autograd::Edge>().function));

}  // namespace ebbtide::test
