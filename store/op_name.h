// What people call the node that made a tensor.
#pragma once

#include <string>

namespace ebbtide {

/// As the framework names it ("GeluBackward0"), from the name of its type as typeid gives it.
std::string op_name(const char* type);

}  // namespace ebbtide
