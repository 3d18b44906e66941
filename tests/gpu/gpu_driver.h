// What the tests ask of a real GPU's driver beyond CudaApi: memory, kernels, graph capture.
#pragma once

#include <ebbtide/transfer/cuda_api.h>

#include <cstddef>
#include <memory>
#include <optional>
#include <string>

namespace ebbtide::test {

struct GpuDriver {
  CudaResult (*device_get_count)(int* count) = nullptr;
  CudaResult (*memory_allocate)(CudaAddress* address, size_t bytes) = nullptr;
  CudaResult (*memory_free)(CudaAddress address) = nullptr;
  CudaResult (*memset_async)(CudaAddress to, unsigned char value, size_t bytes, CudaStream stream) = nullptr;
  CudaResult (*memcpy_device_to_host)(void* to, CudaAddress from, size_t bytes) = nullptr;
  CudaResult (*module_load_data)(void** module, const void* image) = nullptr;
  CudaResult (*module_get_function)(void** function, void* module, const char* name) = nullptr;
  CudaResult (*module_unload)(void* module) = nullptr;
  CudaResult (*launch_kernel)(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                              unsigned block_y, unsigned block_z, unsigned shared_bytes, CudaStream stream,
                              void** parameters, void** extra) = nullptr;
  CudaResult (*context_synchronize)() = nullptr;
  CudaResult (*stream_begin_capture)(CudaStream stream, CudaCaptureMode mode) = nullptr;
  CudaResult (*stream_end_capture)(CudaStream stream, void** graph) = nullptr;
  CudaResult (*graph_destroy)(void* graph) = nullptr;

  /// Loads libcuda.so.1 and starts it. Errors: kUnsupported where there is none, or no device.
  static Result<GpuDriver> open();
  /// Why not; none: there is a GPU.
  static std::optional<std::string> unavailable();
};

}  // namespace ebbtide::test
