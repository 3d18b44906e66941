// The types that transfer/cuda_api.h declares for itself, against those of cuda.h.
#include <ebbtide/transfer/cuda_entries.h>

#include <cuda.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <type_traits>

namespace ebbtide {
namespace {

// The one struct that crosses: member for member.
#define EBBTIDE_SAME_PLACE(ours, theirs)                                           \
  static_assert(offsetof(CudaMemcpy2D, ours) == offsetof(CUDA_MEMCPY2D, theirs) && \
                    sizeof(CudaMemcpy2D::ours) == sizeof(CUDA_MEMCPY2D::theirs),   \
                #ours)
static_assert(sizeof(CudaMemcpy2D) == sizeof(CUDA_MEMCPY2D) && alignof(CudaMemcpy2D) == alignof(CUDA_MEMCPY2D));
EBBTIDE_SAME_PLACE(from_x, srcXInBytes);
EBBTIDE_SAME_PLACE(from_y, srcY);
EBBTIDE_SAME_PLACE(from_type, srcMemoryType);
EBBTIDE_SAME_PLACE(from_host, srcHost);
EBBTIDE_SAME_PLACE(from_device, srcDevice);
EBBTIDE_SAME_PLACE(from_array, srcArray);
EBBTIDE_SAME_PLACE(from_pitch, srcPitch);
EBBTIDE_SAME_PLACE(to_x, dstXInBytes);
EBBTIDE_SAME_PLACE(to_y, dstY);
EBBTIDE_SAME_PLACE(to_type, dstMemoryType);
EBBTIDE_SAME_PLACE(to_host, dstHost);
EBBTIDE_SAME_PLACE(to_device, dstDevice);
EBBTIDE_SAME_PLACE(to_array, dstArray);
EBBTIDE_SAME_PLACE(to_pitch, dstPitch);
EBBTIDE_SAME_PLACE(width, WidthInBytes);
EBBTIDE_SAME_PLACE(height, Height);

/// A type as a calling convention sees it: enums and integers by size and sign, handles as pointers.
template <class T>
struct Abi {
  static_assert(std::is_integral_v<T> || std::is_void_v<T> || std::is_same_v<T, float>);
  using type = T;
};
template <class T>
using AbiOf = typename Abi<T>::type;
template <class T>
requires std::is_enum_v<T>
struct Abi<T> : Abi<std::underlying_type_t<T>> {
};
template <>
struct Abi<unsigned long long> {
  using type = uint64_t;
  static_assert(sizeof(type) == sizeof(unsigned long long));
};
template <class T>
struct Abi<T*> {
  using type = AbiOf<T>*;
};
template <class T>
requires std::is_class_v<T>
struct Abi<T*> {  // a handle
  using type = void*;
};
template <class T>
struct Abi<const T*> {
  using type = const AbiOf<T>*;
};
template <class R, class... Parameters>
struct Abi<R (*)(Parameters...)> {
  using type = AbiOf<R> (*)(AbiOf<Parameters>...);
};

template <>
struct Abi<const CudaMemcpy2D*> {
  using type = const void*;
};
template <>
struct Abi<const CUDA_MEMCPY2D*> {
  using type = const void*;
};

// An enum's underlying type is the compiler's choice in C; what counts is that both are four bytes.
static_assert(sizeof(CUresult) == sizeof(CudaResult) && sizeof(CUstreamCaptureMode) == sizeof(CudaCaptureMode) &&
              sizeof(CUstreamCaptureStatus) == sizeof(CudaCaptureStatus));
template <>
struct Abi<CUresult> : Abi<int> {};
template <>
struct Abi<CUstreamCaptureMode> : Abi<int> {};
template <>
struct Abi<CUstreamCaptureStatus> : Abi<int> {};

#define EBBTIDE_TEXT(symbol) #symbol
#define EBBTIDE_SAME_ABI(name, symbol, ...)                                                                           \
  static_assert(std::is_same_v<AbiOf<decltype(CudaEntries::name)>, AbiOf<decltype(&(symbol))>>, #symbol);             \
  static_assert(std::string_view(#symbol) == EBBTIDE_TEXT(symbol) || std::string_view(#name) == "event_elapsed_time", \
                #symbol " is not what cuda.h maps it to");
EBBTIDE_CUDA_ENTRIES(EBBTIDE_SAME_ABI)

#define EBBTIDE_SAME_VALUE(ours, theirs) static_assert(static_cast<int>(ours) == static_cast<int>(theirs))
EBBTIDE_SAME_VALUE(CudaResult::kSuccess, CUDA_SUCCESS);
EBBTIDE_SAME_VALUE(CudaResult::kInvalidValue, CUDA_ERROR_INVALID_VALUE);
EBBTIDE_SAME_VALUE(CudaResult::kOutOfMemory, CUDA_ERROR_OUT_OF_MEMORY);
EBBTIDE_SAME_VALUE(CudaResult::kNotInitialized, CUDA_ERROR_NOT_INITIALIZED);
EBBTIDE_SAME_VALUE(CudaResult::kDeinitialized, CUDA_ERROR_DEINITIALIZED);
EBBTIDE_SAME_VALUE(CudaResult::kDeviceUnavailable, CUDA_ERROR_DEVICE_UNAVAILABLE);
EBBTIDE_SAME_VALUE(CudaResult::kNoDevice, CUDA_ERROR_NO_DEVICE);
EBBTIDE_SAME_VALUE(CudaResult::kInvalidDevice, CUDA_ERROR_INVALID_DEVICE);
EBBTIDE_SAME_VALUE(CudaResult::kInvalidContext, CUDA_ERROR_INVALID_CONTEXT);
EBBTIDE_SAME_VALUE(CudaResult::kEccUncorrectable, CUDA_ERROR_ECC_UNCORRECTABLE);
EBBTIDE_SAME_VALUE(CudaResult::kNvlinkUncorrectable, CUDA_ERROR_NVLINK_UNCORRECTABLE);
EBBTIDE_SAME_VALUE(CudaResult::kOperatingSystem, CUDA_ERROR_OPERATING_SYSTEM);
EBBTIDE_SAME_VALUE(CudaResult::kInvalidHandle, CUDA_ERROR_INVALID_HANDLE);
EBBTIDE_SAME_VALUE(CudaResult::kNotReady, CUDA_ERROR_NOT_READY);
EBBTIDE_SAME_VALUE(CudaResult::kIllegalAddress, CUDA_ERROR_ILLEGAL_ADDRESS);
EBBTIDE_SAME_VALUE(CudaResult::kLaunchTimeout, CUDA_ERROR_LAUNCH_TIMEOUT);
EBBTIDE_SAME_VALUE(CudaResult::kContextIsDestroyed, CUDA_ERROR_CONTEXT_IS_DESTROYED);
EBBTIDE_SAME_VALUE(CudaResult::kAssert, CUDA_ERROR_ASSERT);
EBBTIDE_SAME_VALUE(CudaResult::kHostMemoryAlreadyRegistered, CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED);
EBBTIDE_SAME_VALUE(CudaResult::kHostMemoryNotRegistered, CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED);
EBBTIDE_SAME_VALUE(CudaResult::kHardwareStackError, CUDA_ERROR_HARDWARE_STACK_ERROR);
EBBTIDE_SAME_VALUE(CudaResult::kIllegalInstruction, CUDA_ERROR_ILLEGAL_INSTRUCTION);
EBBTIDE_SAME_VALUE(CudaResult::kMisalignedAddress, CUDA_ERROR_MISALIGNED_ADDRESS);
EBBTIDE_SAME_VALUE(CudaResult::kInvalidAddressSpace, CUDA_ERROR_INVALID_ADDRESS_SPACE);
EBBTIDE_SAME_VALUE(CudaResult::kInvalidPc, CUDA_ERROR_INVALID_PC);
EBBTIDE_SAME_VALUE(CudaResult::kLaunchFailed, CUDA_ERROR_LAUNCH_FAILED);
EBBTIDE_SAME_VALUE(CudaResult::kNotPermitted, CUDA_ERROR_NOT_PERMITTED);
EBBTIDE_SAME_VALUE(CudaResult::kNotSupported, CUDA_ERROR_NOT_SUPPORTED);
EBBTIDE_SAME_VALUE(CudaResult::kStreamCaptureUnsupported, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
EBBTIDE_SAME_VALUE(CudaResult::kStreamCaptureIsolation, CUDA_ERROR_STREAM_CAPTURE_ISOLATION);
EBBTIDE_SAME_VALUE(CudaResult::kStreamCaptureImplicit, CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
EBBTIDE_SAME_VALUE(CudaResult::kStreamCaptureWrongThread, CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD);
EBBTIDE_SAME_VALUE(CudaResult::kUnknown, CUDA_ERROR_UNKNOWN);
EBBTIDE_SAME_VALUE(CudaCaptureMode::kGlobal, CU_STREAM_CAPTURE_MODE_GLOBAL);
EBBTIDE_SAME_VALUE(CudaCaptureMode::kThreadLocal, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
EBBTIDE_SAME_VALUE(CudaCaptureMode::kRelaxed, CU_STREAM_CAPTURE_MODE_RELAXED);
EBBTIDE_SAME_VALUE(CudaCaptureStatus::kNone, CU_STREAM_CAPTURE_STATUS_NONE);
EBBTIDE_SAME_VALUE(CudaCaptureStatus::kActive, CU_STREAM_CAPTURE_STATUS_ACTIVE);
EBBTIDE_SAME_VALUE(CudaCaptureStatus::kInvalidated, CU_STREAM_CAPTURE_STATUS_INVALIDATED);
EBBTIDE_SAME_VALUE(CudaMemoryType::kHost, CU_MEMORYTYPE_HOST);
EBBTIDE_SAME_VALUE(CudaMemoryType::kDevice, CU_MEMORYTYPE_DEVICE);
EBBTIDE_SAME_VALUE(kCudaStreamNonBlocking, CU_STREAM_NON_BLOCKING);
EBBTIDE_SAME_VALUE(kCudaEventDisableTiming, CU_EVENT_DISABLE_TIMING);
EBBTIDE_SAME_VALUE(kCudaHostRegisterPortable, CU_MEMHOSTREGISTER_PORTABLE);

TEST(CudaAbi, IsThatOfCudaH) {
  SUCCEED() << "as compiled, with CUDA " << CUDA_VERSION;
}

}  // namespace
}  // namespace ebbtide
