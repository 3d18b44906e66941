// Telling a store of a module's parameters and buffers.
#pragma once

#include <ebbtide/pinned_pool/export.h>
#include <ebbtide/store/store.h>

#include <ATen/core/Tensor.h>

namespace torch::nn {
class Module;
}

namespace ebbtide {

/// A tensor that never moves, nor any view of its storage.
EBBTIDE_API void attach_tensor(Store& store, const at::Tensor& tensor);

/// All parameters and buffers of a module and its submodules. What `store.attach(*net)` calls.
EBBTIDE_API void attach_module(Store& store, const torch::nn::Module& module);

}  // namespace ebbtide
