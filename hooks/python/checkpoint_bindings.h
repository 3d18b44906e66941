// Regions, for the Python module.
#pragma once

#include <torch/csrc/utils/pybind.h>

namespace ebbtide {

void bind_checkpoint(pybind11::module_& module);

}  // namespace ebbtide
