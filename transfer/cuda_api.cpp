#include <ebbtide/transfer/cuda_api.h>
#include <ebbtide/transfer/cuda_entries.h>

#include <dlfcn.h>

#include <string>

namespace ebbtide {
namespace {

class DriverCudaApi final : public CudaApi {
 public:
  explicit DriverCudaApi(const CudaEntries& entries) : entries_(entries) {}

  CudaResult init(unsigned flags) noexcept override { return entries_.init(flags); }
  CudaResult get_error_name(CudaResult result, const char** name) noexcept override {
    return entries_.get_error_name(result, name);
  }
  CudaResult get_error_string(CudaResult result, const char** text) noexcept override {
    return entries_.get_error_string(result, text);
  }

  CudaResult device_get(CudaOrdinal* device, int ordinal) noexcept override {
    return entries_.device_get(device, ordinal);
  }
  CudaResult device_get_name(char* name, int size, CudaOrdinal device) noexcept override {
    return entries_.device_get_name(name, size, device);
  }
  CudaResult device_get_pci_bus_id(char* id, int size, CudaOrdinal device) noexcept override {
    return entries_.device_get_pci_bus_id(id, size, device);
  }

  CudaResult primary_context_retain(CudaContextHandle* context, CudaOrdinal device) noexcept override {
    return entries_.primary_context_retain(context, device);
  }
  CudaResult context_get_current(CudaContextHandle* context) noexcept override {
    return entries_.context_get_current(context);
  }
  CudaResult context_set_current(CudaContextHandle context) noexcept override {
    return entries_.context_set_current(context);
  }
  CudaResult context_get_stream_priority_range(int* least, int* greatest) noexcept override {
    return entries_.context_get_stream_priority_range(least, greatest);
  }
  CudaResult thread_exchange_stream_capture_mode(CudaCaptureMode* mode) noexcept override {
    return entries_.thread_exchange_stream_capture_mode(mode);
  }

  CudaResult stream_create_with_priority(CudaStream* stream, unsigned flags, int priority) noexcept override {
    return entries_.stream_create_with_priority(stream, flags, priority);
  }
  CudaResult stream_destroy(CudaStream stream) noexcept override { return entries_.stream_destroy(stream); }
  CudaResult stream_wait_event(CudaStream stream, CudaEvent event, unsigned flags) noexcept override {
    return entries_.stream_wait_event(stream, event, flags);
  }
  CudaResult stream_is_capturing(CudaStream stream, CudaCaptureStatus* status) noexcept override {
    return entries_.stream_is_capturing(stream, status);
  }

  CudaResult event_create(CudaEvent* event, unsigned flags) noexcept override {
    return entries_.event_create(event, flags);
  }
  CudaResult event_destroy(CudaEvent event) noexcept override { return entries_.event_destroy(event); }
  CudaResult event_record(CudaEvent event, CudaStream stream) noexcept override {
    return entries_.event_record(event, stream);
  }
  CudaResult event_query(CudaEvent event) noexcept override { return entries_.event_query(event); }
  CudaResult event_synchronize(CudaEvent event) noexcept override { return entries_.event_synchronize(event); }
  CudaResult event_elapsed_time(float* milliseconds, CudaEvent begin, CudaEvent end) noexcept override {
    return entries_.event_elapsed_time(milliseconds, begin, end);
  }

  CudaResult memcpy_host_to_device_async(CudaAddress to, const void* from, size_t bytes,
                                         CudaStream stream) noexcept override {
    return entries_.memcpy_host_to_device_async(to, from, bytes, stream);
  }
  CudaResult memcpy_device_to_host_async(void* to, CudaAddress from, size_t bytes,
                                         CudaStream stream) noexcept override {
    return entries_.memcpy_device_to_host_async(to, from, bytes, stream);
  }
  CudaResult memcpy_2d_async(const CudaMemcpy2D* copy, CudaStream stream) noexcept override {
    return entries_.memcpy_2d_async(copy, stream);
  }
  CudaResult memory_get_info(size_t* free, size_t* total) noexcept override {
    return entries_.memory_get_info(free, total);
  }
  CudaResult host_register(void* data, size_t bytes, unsigned flags) noexcept override {
    return entries_.host_register(data, bytes, flags);
  }
  CudaResult host_unregister(void* data) noexcept override { return entries_.host_unregister(data); }

 private:
  const CudaEntries entries_;
};

}  // namespace

Result<std::shared_ptr<CudaApi>> CudaApi::of_process() {
  void* const library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);  // never closed: its functions are called
  if (library == nullptr)
    return Failure{FailureCode::kUnsupported, 0, "This process has not loaded CUDA's driver, libcuda.so.1."};
  CudaEntries entries;
  std::string missing;
#define EBBTIDE_CUDA_LOAD(name, symbol, ...)                                        \
  entries.name = reinterpret_cast<decltype(entries.name)>(dlsym(library, #symbol)); \
  if (entries.name == nullptr) missing += (missing.empty() ? "" : ", ") + std::string(#symbol);
  EBBTIDE_CUDA_ENTRIES(EBBTIDE_CUDA_LOAD)
#undef EBBTIDE_CUDA_LOAD
  if (!missing.empty())
    return Failure{FailureCode::kUnsupported, 0,
                   "CUDA's driver, libcuda.so.1, is too old: it has no " + missing + ". Update it."};
  return std::shared_ptr<CudaApi>(std::make_shared<DriverCudaApi>(entries));
}

}  // namespace ebbtide
