// What is used of CUDA's driver: one line a function, from which the table, its loading and its test are made.
#pragma once

#include <ebbtide/transfer/cuda_api.h>

#include <cstddef>

/// ENTRY(name in CudaApi, symbol in libcuda.so.1, types of its parameters...). The symbols are the versioned ones that
/// cuda.h maps to, in their plain form, in which stream 0 is the legacy default stream. cuEventElapsedTime is the one
/// exception: its _v2 has the same parameters and is missing in drivers before CUDA 12.8.
#define EBBTIDE_CUDA_ENTRIES(ENTRY)                                                                      \
  ENTRY(init, cuInit, unsigned)                                                                          \
  ENTRY(get_error_name, cuGetErrorName, CudaResult, const char**)                                        \
  ENTRY(get_error_string, cuGetErrorString, CudaResult, const char**)                                    \
  ENTRY(device_get, cuDeviceGet, CudaOrdinal*, int)                                                      \
  ENTRY(device_get_name, cuDeviceGetName, char*, int, CudaOrdinal)                                       \
  ENTRY(device_get_pci_bus_id, cuDeviceGetPCIBusId, char*, int, CudaOrdinal)                             \
  ENTRY(primary_context_retain, cuDevicePrimaryCtxRetain, CudaContextHandle*, CudaOrdinal)               \
  ENTRY(context_get_current, cuCtxGetCurrent, CudaContextHandle*)                                        \
  ENTRY(context_set_current, cuCtxSetCurrent, CudaContextHandle)                                         \
  ENTRY(context_get_stream_priority_range, cuCtxGetStreamPriorityRange, int*, int*)                      \
  ENTRY(thread_exchange_stream_capture_mode, cuThreadExchangeStreamCaptureMode, CudaCaptureMode*)        \
  ENTRY(stream_create_with_priority, cuStreamCreateWithPriority, CudaStream*, unsigned, int)             \
  ENTRY(stream_destroy, cuStreamDestroy_v2, CudaStream)                                                  \
  ENTRY(stream_wait_event, cuStreamWaitEvent, CudaStream, CudaEvent, unsigned)                           \
  ENTRY(stream_is_capturing, cuStreamIsCapturing, CudaStream, CudaCaptureStatus*)                        \
  ENTRY(event_create, cuEventCreate, CudaEvent*, unsigned)                                               \
  ENTRY(event_destroy, cuEventDestroy_v2, CudaEvent)                                                     \
  ENTRY(event_record, cuEventRecord, CudaEvent, CudaStream)                                              \
  ENTRY(event_query, cuEventQuery, CudaEvent)                                                            \
  ENTRY(event_synchronize, cuEventSynchronize, CudaEvent)                                                \
  ENTRY(event_elapsed_time, cuEventElapsedTime, float*, CudaEvent, CudaEvent)                            \
  ENTRY(memcpy_host_to_device_async, cuMemcpyHtoDAsync_v2, CudaAddress, const void*, size_t, CudaStream) \
  ENTRY(memcpy_device_to_host_async, cuMemcpyDtoHAsync_v2, void*, CudaAddress, size_t, CudaStream)       \
  ENTRY(memcpy_2d_async, cuMemcpy2DAsync_v2, const CudaMemcpy2D*, CudaStream)                            \
  ENTRY(memory_get_info, cuMemGetInfo_v2, size_t*, size_t*)                                              \
  ENTRY(host_register, cuMemHostRegister_v2, void*, size_t, unsigned)                                    \
  ENTRY(host_unregister, cuMemHostUnregister, void*)

namespace ebbtide {

/// The driver's own functions.
struct CudaEntries {
#define EBBTIDE_CUDA_MEMBER(name, symbol, ...) CudaResult (*name)(__VA_ARGS__) = nullptr;
  EBBTIDE_CUDA_ENTRIES(EBBTIDE_CUDA_MEMBER)
#undef EBBTIDE_CUDA_MEMBER
};

}  // namespace ebbtide
