#include <ebbtide/hooks/arithmetic.h>

#include <ATen/Parallel.h>

namespace ebbtide {

using at::Float32Backend;
using at::Float32Op;

Arithmetic::Arithmetic() : threads_(at::get_num_threads()), mkldnn_(at::globalContext().userEnabledMkldnn()) {
  std::fegetenv(&floating_);
  const auto precision = [](Float32Backend backend, Float32Op op) {
    return Precision{backend, op, at::globalContext().float32Precision(backend, op)};
  };
  precisions_ = {precision(Float32Backend::CUDA, Float32Op::MATMUL), precision(Float32Backend::CUDA, Float32Op::CONV),
                 precision(Float32Backend::MKLDNN, Float32Op::MATMUL),
                 precision(Float32Backend::MKLDNN, Float32Op::CONV)};
}

void Arithmetic::set() const {
  at::Context& context = at::globalContext();
  if (at::get_num_threads() != threads_) at::set_num_threads(threads_);
  std::fesetenv(&floating_);
  if (context.userEnabledMkldnn() != mkldnn_) context.setUserEnabledMkldnn(mkldnn_);
  for (const auto& [backend, op, value] : precisions_)
    if (context.float32Precision(backend, op) != value) context.setFloat32Precision(backend, op, value);
}

}  // namespace ebbtide
