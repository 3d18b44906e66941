// A driver for CUDA devices that do not exist: CudaDevice's own code runs over pretend accelerators.
#pragma once

#include <ebbtide/transfer/cuda_api.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "tests/support/chaos_device.h"

namespace ebbtide::test {

/// Each device is a ChaosDevice, which does the work and looks for races. A CUstream's value is that device's StreamId,
/// so that what a framework does (allocate, launch, host_read) is asked of device() directly. All streams are
/// non-blocking; the legacy one is no exception, as the pessimist has it.
///
/// An event's time is counted in records: one millisecond each.
///
/// Threads:  any; serialised by one mutex, which comes before that of the devices.
/// Lifetime: shared by CudaDevices; outlives the devices' buffers.
class FakeCudaApi final : public CudaApi {
 public:
  explicit FakeCudaApi(std::vector<ChaosOptions> devices = {ChaosOptions{}});

  ChaosDevice& device(int ordinal = 0) { return *devices_.at(static_cast<size_t>(ordinal)).engine; }
  /// What stream 0 is on this device.
  StreamId legacy_stream(int ordinal = 0) const { return devices_.at(static_cast<size_t>(ordinal)).legacy; }

  // Faults
  /// The functions by name, as in CudaApi.
  static std::span<const std::string_view> functions();
  /// After `skip` more calls of this function, one returns `result` and has no effect.
  void fail(std::string_view function, int skip, CudaResult result);
  /// From now on all calls about this device return `result`, and nothing runs on it any more.
  void lose(CudaResult result, int ordinal = 0);
  /// From now on every call returns kDeinitialized, as at the process's end.
  void end_process();

  // What a program does
  /// The device whose context is current on the calling thread; none: no context.
  void use_device(std::optional<int> ordinal);
  /// The calling thread is to find things as it left them: its own context, and captures not relaxed.
  bool thread_is_as_before() const;
  void begin_capture(StreamId stream, CudaCaptureMode mode, bool ordered_with_legacy = false);
  /// False: it was broken.
  bool end_capture(StreamId stream);

  // What the test wants to know
  /// Calls that make no sense, or that a real driver would answer with harm elsewhere. The devices' own included.
  std::vector<std::string> misuse() const;
  /// Copies from or to host memory that is not registered: allowed, but the caller then waits for the stream.
  int pageable_copies() const;
  int calls(std::string_view function) const;
  size_t live_events() const;
  size_t live_streams() const;
  /// Flags and priority of the streams made, in order.
  std::vector<std::pair<unsigned, int>> streams_made() const;

  // CudaApi
  CudaResult init(unsigned flags) noexcept override;
  CudaResult get_error_name(CudaResult result, const char** name) noexcept override;
  CudaResult get_error_string(CudaResult result, const char** text) noexcept override;
  CudaResult device_get(CudaOrdinal* device, int ordinal) noexcept override;
  CudaResult device_get_name(char* name, int size, CudaOrdinal device) noexcept override;
  CudaResult device_get_pci_bus_id(char* id, int size, CudaOrdinal device) noexcept override;
  CudaResult primary_context_retain(CudaContextHandle* context, CudaOrdinal device) noexcept override;
  CudaResult context_get_current(CudaContextHandle* context) noexcept override;
  CudaResult context_set_current(CudaContextHandle context) noexcept override;
  CudaResult context_get_stream_priority_range(int* least, int* greatest) noexcept override;
  CudaResult thread_exchange_stream_capture_mode(CudaCaptureMode* mode) noexcept override;
  CudaResult stream_create_with_priority(CudaStream* stream, unsigned flags, int priority) noexcept override;
  CudaResult stream_destroy(CudaStream stream) noexcept override;
  CudaResult stream_wait_event(CudaStream stream, CudaEvent event, unsigned flags) noexcept override;
  CudaResult stream_is_capturing(CudaStream stream, CudaCaptureStatus* status) noexcept override;
  CudaResult event_create(CudaEvent* event, unsigned flags) noexcept override;
  CudaResult event_destroy(CudaEvent event) noexcept override;
  CudaResult event_record(CudaEvent event, CudaStream stream) noexcept override;
  CudaResult event_query(CudaEvent event) noexcept override;
  CudaResult event_synchronize(CudaEvent event) noexcept override;
  CudaResult event_elapsed_time(float* milliseconds, CudaEvent begin, CudaEvent end) noexcept override;
  CudaResult memcpy_host_to_device_async(CudaAddress to, const void* from, size_t bytes,
                                         CudaStream stream) noexcept override;
  CudaResult memcpy_device_to_host_async(void* to, CudaAddress from, size_t bytes, CudaStream stream) noexcept override;
  CudaResult memcpy_2d_async(const CudaMemcpy2D* copy, CudaStream stream) noexcept override;
  CudaResult memory_get_info(size_t* free, size_t* total) noexcept override;
  CudaResult host_register(void* data, size_t bytes, unsigned flags) noexcept override;
  CudaResult host_unregister(void* data) noexcept override;

 private:
  struct OneDevice {
    std::unique_ptr<ChaosDevice> engine;
    StreamId legacy{};
    bool retained = false;
    std::optional<CudaResult> lost;
  };
  struct OneEvent {
    int ordinal = 0;
    bool timed = false;
    EventPtr recorded;
    int64_t time = 0;
  };
  struct OneThread {
    std::optional<int> current, own;
    CudaCaptureMode mode = CudaCaptureMode::kGlobal;
  };
  struct Capture {
    CudaCaptureMode mode{};
    std::thread::id thread;
    bool ordered_with_legacy = false;
    bool broken = false;
  };
  struct Registration {
    size_t bytes = 0;
    bool portable = false;
    int ordinal = 0;
  };
  /// What a call must find.
  enum class Needs {
    kNothing,    // asks about drivers or threads
    kContext,    // only enqueues
    kNoCapture,  // and is forbidden while a graph is being captured, unless the thread has relaxed that
  };

  /// Set: the call ends so.
  std::optional<CudaResult> enter_locked(std::string_view function, Needs needs);
  OneThread& thread_locked() { return threads_[std::this_thread::get_id()]; }
  OneDevice& current_locked() { return devices_[static_cast<size_t>(*thread_locked().current)]; }
  CudaResult complain_locked(std::string what, CudaResult result);
  /// The engine's name for the stream; none: it is not a stream of the current device, which is misuse.
  std::optional<StreamId> stream_locked(CudaStream stream, const char* function);
  /// The same, for calls that enqueue: not on a stream that is being captured.
  std::optional<StreamId> open_stream_locked(CudaStream stream, const char* function);
  OneEvent* event_locked(CudaEvent event, const char* function);
  OneEvent* recorded_locked(CudaEvent event, const char* function);
  CudaResult copy_locked(void* to, const void* from, size_t bytes, Direction direction, CudaStream stream,
                         const char* function);
  bool registered_locked(const void* data, size_t bytes);
  template <class T>
  CudaResult answer_locked(const Result<T>& result);

  mutable std::mutex mutex_;
  // All below: guarded by mutex_.
  std::vector<OneDevice> devices_;
  std::map<std::thread::id, OneThread> threads_;
  std::map<CudaEvent, OneEvent> events_;
  std::set<StreamId> streams_;  // made through the driver
  std::set<StreamId> dead_streams_;
  std::vector<std::pair<unsigned, int>> streams_made_;
  std::map<StreamId, Capture> captures_;
  std::map<uintptr_t, Registration> registered_;
  std::map<std::string, std::pair<int, CudaResult>, std::less<>> faults_;
  std::map<std::string, int, std::less<>> calls_;
  std::vector<std::string> misuse_;
  int pageable_copies_ = 0;
  uintptr_t next_event_ = 0;
  int64_t time_ = 0;
  bool initialised_ = false;
  bool process_ended_ = false;
};

}  // namespace ebbtide::test
