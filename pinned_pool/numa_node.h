// NUMA nodes by number.
#pragma once

namespace ebbtide {

/// A NUMA node's number as the operating system counts it.
enum class NumaNode : int {};
inline constexpr NumaNode kAnyNode{-1};

}  // namespace ebbtide
