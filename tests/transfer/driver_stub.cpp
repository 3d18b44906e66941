// A library by the name of CUDA's driver. Each function returns its number in the list, from 1000: so a test sees which
// was called. With EBBTIDE_STUB_OF_OLD it has only the first, as a driver that is too old has only some.
#include <ebbtide/transfer/cuda_entries.h>

namespace ebbtide {

enum Number : int {
#define EBBTIDE_STUB_NUMBER(name, symbol, ...) k_##name,
  EBBTIDE_CUDA_ENTRIES(EBBTIDE_STUB_NUMBER)
};

extern "C" {
#ifdef EBBTIDE_STUB_OF_OLD
__attribute__((visibility("default"))) CudaResult cuInit(unsigned) {
  return CudaResult::kSuccess;
}
#else
#define EBBTIDE_STUB(name, symbol, ...)                                   \
  __attribute__((visibility("default"))) CudaResult symbol(__VA_ARGS__) { \
    return static_cast<CudaResult>(1000 + Number::k_##name);              \
  }
EBBTIDE_CUDA_ENTRIES(EBBTIDE_STUB)
#endif
}

}  // namespace ebbtide
