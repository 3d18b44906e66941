// Tensors of Python's wrapper classes, for the Python module.
#pragma once

#include <torch/csrc/utils/pybind.h>

namespace ebbtide {

void bind_wrappers(pybind11::module_& module);

}  // namespace ebbtide
