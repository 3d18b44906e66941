// A driver that does nothing, at once: what is left is what our own code costs.
#pragma once

#include <ebbtide/transfer/cuda_api.h>

#include <cstdint>
#include <cstdio>

namespace ebbtide::test {

/// Every event has passed, no byte moves. Threads: one at a time.
class NoopCudaApi final : public CudaApi {
 public:
  CudaResult init(unsigned) noexcept override { return kDone; }
  CudaResult get_error_name(CudaResult, const char** name) noexcept override { return *name = "?", kDone; }
  CudaResult get_error_string(CudaResult, const char** text) noexcept override { return *text = "?", kDone; }
  CudaResult device_get(CudaOrdinal* device, int ordinal) noexcept override { return *device = ordinal, kDone; }
  CudaResult device_get_name(char* name, int size, CudaOrdinal) noexcept override {
    std::snprintf(name, static_cast<size_t>(size), "nothing");
    return kDone;
  }
  CudaResult device_get_pci_bus_id(char* id, int size, CudaOrdinal) noexcept override {
    std::snprintf(id, static_cast<size_t>(size), "0000:00:00.0");
    return kDone;
  }
  CudaResult primary_context_retain(CudaContextHandle* context, CudaOrdinal) noexcept override {
    return *context = handle<CudaContextHandle>(1), kDone;
  }
  CudaResult context_get_current(CudaContextHandle* context) noexcept override { return *context = current_, kDone; }
  CudaResult context_set_current(CudaContextHandle context) noexcept override { return current_ = context, kDone; }
  CudaResult context_get_stream_priority_range(int* least, int* greatest) noexcept override {
    return *least = *greatest = 0, kDone;
  }
  CudaResult thread_exchange_stream_capture_mode(CudaCaptureMode* mode) noexcept override {
    const CudaCaptureMode before = mode_;
    mode_ = *mode;
    return *mode = before, kDone;
  }
  CudaResult stream_create_with_priority(CudaStream* stream, unsigned, int) noexcept override {
    return *stream = handle<CudaStream>(++handles_), kDone;
  }
  CudaResult stream_destroy(CudaStream) noexcept override { return kDone; }
  CudaResult stream_wait_event(CudaStream, CudaEvent, unsigned) noexcept override { return kDone; }
  CudaResult stream_is_capturing(CudaStream, CudaCaptureStatus* status) noexcept override {
    return *status = CudaCaptureStatus::kNone, kDone;
  }
  CudaResult event_create(CudaEvent* event, unsigned) noexcept override {
    return *event = handle<CudaEvent>(++handles_), kDone;
  }
  CudaResult event_destroy(CudaEvent) noexcept override { return kDone; }
  CudaResult event_record(CudaEvent, CudaStream) noexcept override { return kDone; }
  CudaResult event_query(CudaEvent) noexcept override { return kDone; }
  CudaResult event_synchronize(CudaEvent) noexcept override { return kDone; }
  CudaResult event_elapsed_time(float* milliseconds, CudaEvent, CudaEvent) noexcept override {
    return *milliseconds = 0, kDone;
  }
  CudaResult memcpy_host_to_device_async(CudaAddress, const void*, size_t, CudaStream) noexcept override {
    return kDone;
  }
  CudaResult memcpy_device_to_host_async(void*, CudaAddress, size_t, CudaStream) noexcept override { return kDone; }
  CudaResult memcpy_2d_async(const CudaMemcpy2D*, CudaStream) noexcept override { return kDone; }
  CudaResult memory_get_info(size_t* free, size_t* total) noexcept override { return *free = *total = 0, kDone; }
  CudaResult host_register(void*, size_t, unsigned) noexcept override { return kDone; }
  CudaResult host_unregister(void*) noexcept override { return kDone; }

 private:
  static constexpr auto kDone = CudaResult::kSuccess;
  template <class Handle>
  static Handle handle(uintptr_t number) noexcept {
    return reinterpret_cast<Handle>(number << 4);
  }
  CudaContextHandle current_ = nullptr;
  CudaCaptureMode mode_ = CudaCaptureMode::kGlobal;
  uintptr_t handles_ = 0;
};

}  // namespace ebbtide::test
