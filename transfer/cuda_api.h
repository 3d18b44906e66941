// The functions of CUDA's driver that the store uses, behind an interface: no header and no library of CUDA is needed
// to build, and a test brings a driver of its own.
#pragma once

#include <ebbtide/pinned_pool/result.h>

#include <cstddef>
#include <cstdint>
#include <memory>

namespace ebbtide {

// The driver's types, as its ABI has them (tests/transfer/cuda_abi_test.cpp compares them with cuda.h).
using CudaOrdinal = int;  // CUdevice
using CudaContextHandle = struct CudaContextTag*;
using CudaStream = struct CudaStreamTag*;
using CudaEvent = struct CudaEventTag*;
using CudaAddress = uint64_t;  // CUdeviceptr

/// CUresult, as far as results are told apart here. A driver may return others.
enum class CudaResult : int {
  kSuccess = 0,
  kInvalidValue = 1,
  kOutOfMemory = 2,
  kNotInitialized = 3,
  kDeinitialized = 4,
  kDeviceUnavailable = 46,
  kNoDevice = 100,
  kInvalidDevice = 101,
  kInvalidContext = 201,
  kEccUncorrectable = 214,
  kNvlinkUncorrectable = 220,
  kOperatingSystem = 304,
  kInvalidHandle = 400,
  kNotReady = 600,
  kIllegalAddress = 700,
  kLaunchTimeout = 702,
  kContextIsDestroyed = 709,
  kAssert = 710,
  kHostMemoryAlreadyRegistered = 712,
  kHostMemoryNotRegistered = 713,
  kHardwareStackError = 714,
  kIllegalInstruction = 715,
  kMisalignedAddress = 716,
  kInvalidAddressSpace = 717,
  kInvalidPc = 718,
  kLaunchFailed = 719,
  kNotPermitted = 800,
  kNotSupported = 801,
  kStreamCaptureUnsupported = 900,
  kStreamCaptureIsolation = 905,
  kStreamCaptureImplicit = 906,
  kStreamCaptureWrongThread = 908,
  kUnknown = 999,
};

enum class CudaCaptureMode : int { kGlobal = 0, kThreadLocal = 1, kRelaxed = 2 };
enum class CudaCaptureStatus : int { kNone = 0, kActive = 1, kInvalidated = 2 };

enum class CudaMemoryType : int { kHost = 1, kDevice = 2 };

/// CUDA_MEMCPY2D.
struct CudaMemcpy2D {
  size_t from_x = 0, from_y = 0;
  CudaMemoryType from_type{};
  const void* from_host = nullptr;
  CudaAddress from_device = 0;
  void* from_array = nullptr;
  size_t from_pitch = 0;

  size_t to_x = 0, to_y = 0;
  CudaMemoryType to_type{};
  void* to_host = nullptr;
  CudaAddress to_device = 0;
  void* to_array = nullptr;
  size_t to_pitch = 0;

  size_t width = 0;  // bytes
  size_t height = 0;
};

inline constexpr unsigned kCudaStreamNonBlocking = 1;
inline constexpr unsigned kCudaEventDisableTiming = 2;
inline constexpr unsigned kCudaHostRegisterPortable = 1;

/// What each function does is CUDA's to say (cuda_entries.h names the driver's function for each).
/// Threads: any.
class CudaApi {
 public:
  virtual ~CudaApi() = default;

  /// The driver that this process has loaded. It is not loaded for the purpose: whoever computes on CUDA has done so.
  /// Lifetime: the library stays loaded. Errors: kUnsupported where there is none, or it is too old.
  static Result<std::shared_ptr<CudaApi>> of_process();

  virtual CudaResult init(unsigned flags) noexcept = 0;
  virtual CudaResult get_error_name(CudaResult result, const char** name) noexcept = 0;
  virtual CudaResult get_error_string(CudaResult result, const char** text) noexcept = 0;

  virtual CudaResult device_get(CudaOrdinal* device, int ordinal) noexcept = 0;
  virtual CudaResult device_get_name(char* name, int size, CudaOrdinal device) noexcept = 0;
  virtual CudaResult device_get_pci_bus_id(char* id, int size, CudaOrdinal device) noexcept = 0;

  virtual CudaResult primary_context_retain(CudaContextHandle* context, CudaOrdinal device) noexcept = 0;
  virtual CudaResult context_get_current(CudaContextHandle* context) noexcept = 0;
  virtual CudaResult context_set_current(CudaContextHandle context) noexcept = 0;
  virtual CudaResult context_get_stream_priority_range(int* least, int* greatest) noexcept = 0;
  virtual CudaResult thread_exchange_stream_capture_mode(CudaCaptureMode* mode) noexcept = 0;

  virtual CudaResult stream_create_with_priority(CudaStream* stream, unsigned flags, int priority) noexcept = 0;
  virtual CudaResult stream_destroy(CudaStream stream) noexcept = 0;
  virtual CudaResult stream_wait_event(CudaStream stream, CudaEvent event, unsigned flags) noexcept = 0;
  virtual CudaResult stream_is_capturing(CudaStream stream, CudaCaptureStatus* status) noexcept = 0;

  virtual CudaResult event_create(CudaEvent* event, unsigned flags) noexcept = 0;
  virtual CudaResult event_destroy(CudaEvent event) noexcept = 0;
  virtual CudaResult event_record(CudaEvent event, CudaStream stream) noexcept = 0;
  virtual CudaResult event_query(CudaEvent event) noexcept = 0;
  virtual CudaResult event_synchronize(CudaEvent event) noexcept = 0;
  virtual CudaResult event_elapsed_time(float* milliseconds, CudaEvent begin, CudaEvent end) noexcept = 0;

  virtual CudaResult memcpy_host_to_device_async(CudaAddress to, const void* from, size_t bytes,
                                                 CudaStream stream) noexcept = 0;
  virtual CudaResult memcpy_device_to_host_async(void* to, CudaAddress from, size_t bytes,
                                                 CudaStream stream) noexcept = 0;
  virtual CudaResult memcpy_2d_async(const CudaMemcpy2D* copy, CudaStream stream) noexcept = 0;
  virtual CudaResult memory_get_info(size_t* free, size_t* total) noexcept = 0;
  virtual CudaResult host_register(void* data, size_t bytes, unsigned flags) noexcept = 0;
  virtual CudaResult host_unregister(void* data) noexcept = 0;
};

}  // namespace ebbtide
