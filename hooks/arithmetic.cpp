#include <ebbtide/hooks/arithmetic.h>

#include <ATen/Parallel.h>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace ebbtide {
namespace {

/// How this thread rounds and what it does with denormals. fegetenv takes several times as long.
uint64_t rounding() noexcept {
#if defined(__x86_64__)
  return _mm_getcsr() & 0xe040u;  // not which exceptions there were
#elif defined(__aarch64__)
  uint64_t control = 0;
  asm volatile("mrs %0, fpcr" : "=r"(control));
  return control & 0xffffffffu;
#else
  return static_cast<uint64_t>(std::fegetround());
#endif
}

}  // namespace

using at::Float32Backend;
using at::Float32Op;

Arithmetic::Arithmetic() : threads_(at::get_num_threads()) {
  std::fegetenv(&floating_);
  const at::Context& context = at::globalContext();
  mkldnn_ = context.userEnabledMkldnn();
  cudnn_ = context.userEnabledCuDNN();
  deterministic_cudnn_ = context.deterministicCuDNN();
  deterministic_ = context.deterministicAlgorithms();
  warn_only_ = context.deterministicAlgorithmsWarnOnly();
  halves_ = context.allowFP16ReductionCuBLAS();
  bfloats_ = context.allowBF16ReductionCuBLAS();
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
  if (context.userEnabledCuDNN() != cudnn_) context.setUserEnabledCuDNN(cudnn_);
  if (context.deterministicCuDNN() != deterministic_cudnn_) context.setDeterministicCuDNN(deterministic_cudnn_);
  if (context.deterministicAlgorithms() != deterministic_ || context.deterministicAlgorithmsWarnOnly() != warn_only_)
    context.setDeterministicAlgorithms(deterministic_, warn_only_);
  using Option = at::CuBLASReductionOption;
  const auto allowed = [](Option option) { return option == Option::AllowReducedPrecisionWithSplitK; };
  const auto split = [](Option option) { return option != Option::DisallowReducedPrecisionDisallowSplitK; };
  if (context.allowFP16ReductionCuBLAS() != halves_)
    context.setAllowFP16ReductionCuBLAS(allowed(halves_), split(halves_));
  if (context.allowBF16ReductionCuBLAS() != bfloats_)
    context.setAllowBF16ReductionCuBLAS(allowed(bfloats_), split(bfloats_));
  for (const auto& [backend, op, value] : precisions_)
    if (context.float32Precision(backend, op) != value) context.setFloat32Precision(backend, op, value);
}

uint64_t arithmetic_now(bool on_host) noexcept {
  const at::Context& context = at::globalContext();
  if (on_host)
    return rounding() << 32 | static_cast<uint64_t>(at::get_num_threads()) << 1 |
           static_cast<uint64_t>(context.userEnabledMkldnn());
  uint64_t word = 0;
  for (const int setting :
       {static_cast<int>(context.float32Precision(Float32Backend::CUDA, Float32Op::MATMUL)),
        static_cast<int>(context.float32Precision(Float32Backend::CUDA, Float32Op::CONV)),
        static_cast<int>(context.allowFP16ReductionCuBLAS()), static_cast<int>(context.allowBF16ReductionCuBLAS()),
        static_cast<int>(context.userEnabledCuDNN()), static_cast<int>(context.deterministicCuDNN()),
        static_cast<int>(context.deterministicAlgorithms())})
    word = word << 8 | static_cast<uint8_t>(setting);
  return word;
}

}  // namespace ebbtide
