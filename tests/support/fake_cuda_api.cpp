#include "tests/support/fake_cuda_api.h"

#include <ebbtide/transfer/cuda_entries.h>

#include <algorithm>
#include <cstdio>
#include <iterator>

namespace ebbtide::test {
namespace {

constexpr auto kSuccess = CudaResult::kSuccess;
constexpr int kLeastPriority = 0;
constexpr int kGreatestPriority = -5;
constexpr uint64_t kStreamsADevice = 1 << 20;

CudaContextHandle context_of(int ordinal) {
  return reinterpret_cast<CudaContextHandle>(static_cast<uintptr_t>(ordinal + 1) << 12);
}

std::optional<int> ordinal_of(CudaContextHandle context) {
  if (context == nullptr) return std::nullopt;
  return static_cast<int>((reinterpret_cast<uintptr_t>(context) >> 12) - 1);
}

std::byte* pointer(CudaAddress address) {
  return reinterpret_cast<std::byte*>(address);
}

Failure loss(CudaResult result) {
  return {FailureCode::kDeviceLost, 0,
          "The pretend device is lost: error " + std::to_string(static_cast<int>(result)) + "."};
}

}  // namespace

FakeCudaApi::FakeCudaApi(std::vector<ChaosOptions> devices) {
  for (ChaosOptions& options : devices) {
    options.streams_above = devices_.size() * kStreamsADevice;
    OneDevice& device = devices_.emplace_back();
    device.engine = std::make_unique<ChaosDevice>(options);
    device.legacy = device.engine->make_stream("legacy");
  }
}

std::span<const std::string_view> FakeCudaApi::functions() {
#define EBBTIDE_CUDA_NAME(name, symbol, ...) #name,
  static constexpr std::string_view kFunctions[] = {EBBTIDE_CUDA_ENTRIES(EBBTIDE_CUDA_NAME)};
#undef EBBTIDE_CUDA_NAME
  return kFunctions;
}

void FakeCudaApi::fail(std::string_view function, int skip, CudaResult result) {
  const std::lock_guard lock(mutex_);
  faults_.insert_or_assign(std::string(function), std::pair(skip, result));
}

void FakeCudaApi::lose(CudaResult result, int ordinal) {
  const std::lock_guard lock(mutex_);
  OneDevice& device = devices_.at(static_cast<size_t>(ordinal));
  device.lost = result;
  device.engine->lose(loss(result));
}

void FakeCudaApi::end_process() {
  const std::lock_guard lock(mutex_);
  process_ended_ = true;
  for (OneDevice& device : devices_) device.engine->lose(loss(CudaResult::kDeinitialized));
}

void FakeCudaApi::use_device(std::optional<int> ordinal) {
  const std::lock_guard lock(mutex_);
  OneThread& thread = thread_locked();
  thread.current = thread.own = ordinal;
}

bool FakeCudaApi::thread_is_as_before() const {
  const std::lock_guard lock(mutex_);
  const auto it = threads_.find(std::this_thread::get_id());
  if (it == threads_.end()) return true;
  return it->second.current == it->second.own && it->second.mode == CudaCaptureMode::kGlobal;
}

void FakeCudaApi::begin_capture(StreamId stream, CudaCaptureMode mode, bool ordered_with_legacy) {
  const std::lock_guard lock(mutex_);
  captures_[stream] = Capture{mode, std::this_thread::get_id(), ordered_with_legacy};
}

bool FakeCudaApi::end_capture(StreamId stream) {
  const std::lock_guard lock(mutex_);
  const auto capture = captures_.extract(stream);
  return !capture.empty() && !capture.mapped().broken;
}

std::vector<std::string> FakeCudaApi::misuse() const {
  const std::lock_guard lock(mutex_);
  std::vector<std::string> all = misuse_;
  for (const OneDevice& device : devices_) std::ranges::copy(device.engine->misuse(), std::back_inserter(all));
  return all;
}

int FakeCudaApi::pageable_copies() const {
  const std::lock_guard lock(mutex_);
  return pageable_copies_;
}

int FakeCudaApi::calls(std::string_view function) const {
  const std::lock_guard lock(mutex_);
  const auto it = calls_.find(function);
  return it == calls_.end() ? 0 : it->second;
}

size_t FakeCudaApi::live_events() const {
  const std::lock_guard lock(mutex_);
  return events_.size();
}

size_t FakeCudaApi::live_streams() const {
  const std::lock_guard lock(mutex_);
  return streams_.size();
}

std::vector<std::pair<unsigned, int>> FakeCudaApi::streams_made() const {
  const std::lock_guard lock(mutex_);
  return streams_made_;
}

CudaResult FakeCudaApi::init(unsigned) noexcept {
  const std::lock_guard lock(mutex_);
  if (const auto ended = enter_locked(__func__, Needs::kNothing)) return *ended;
  initialised_ = true;
  return kSuccess;
}

CudaResult FakeCudaApi::get_error_name(CudaResult result, const char** name) noexcept {
  const std::lock_guard lock(mutex_);
  if (const auto ended = enter_locked(__func__, Needs::kNothing)) return *ended;
  static thread_local char text[32];
  std::snprintf(text, sizeof text, "CUDA_ERROR_%d", static_cast<int>(result));
  *name = text;
  return kSuccess;
}

CudaResult FakeCudaApi::get_error_string(CudaResult, const char** text) noexcept {
  const std::lock_guard lock(mutex_);
  if (const auto ended = enter_locked(__func__, Needs::kNothing)) return *ended;
  *text = "what a driver says of it";
  return kSuccess;
}

CudaResult FakeCudaApi::device_get(CudaOrdinal* device, int ordinal) noexcept {
  const std::lock_guard lock(mutex_);
  if (const auto ended = enter_locked(__func__, Needs::kNothing)) return *ended;
  if (!initialised_) return CudaResult::kNotInitialized;
  if (ordinal < 0 || static_cast<size_t>(ordinal) >= devices_.size()) return CudaResult::kInvalidDevice;
  *device = ordinal;
  return kSuccess;
}

CudaResult FakeCudaApi::device_get_name(char* name, int size, CudaOrdinal device) noexcept {
  const std::lock_guard lock(mutex_);
  if (const auto ended = enter_locked(__func__, Needs::kNothing)) return *ended;
  std::snprintf(name, static_cast<size_t>(size), "Pretend GPU %d", device);
  return kSuccess;
}

CudaResult FakeCudaApi::device_get_pci_bus_id(char* id, int size, CudaOrdinal device) noexcept {
  const std::lock_guard lock(mutex_);
  if (const auto ended = enter_locked(__func__, Needs::kNothing)) return *ended;
  std::snprintf(id, static_cast<size_t>(size), "0000:%02X:00.0", 0xA0 + device);
  return kSuccess;
}

CudaResult FakeCudaApi::primary_context_retain(CudaContextHandle* context, CudaOrdinal device) noexcept {
  const std::lock_guard lock(mutex_);
  if (const auto ended = enter_locked(__func__, Needs::kNothing)) return *ended;
  devices_[static_cast<size_t>(device)].retained = true;
  *context = context_of(device);
  return kSuccess;
}

CudaResult FakeCudaApi::context_get_current(CudaContextHandle* context) noexcept {
  const std::lock_guard lock(mutex_);
  if (const auto ended = enter_locked(__func__, Needs::kNothing)) return *ended;
  const std::optional<int> current = thread_locked().current;
  *context = current ? context_of(*current) : nullptr;
  return kSuccess;
}

CudaResult FakeCudaApi::context_set_current(CudaContextHandle context) noexcept {
  const std::lock_guard lock(mutex_);
  if (const auto ended = enter_locked(__func__, Needs::kNothing)) return *ended;
  const std::optional<int> ordinal = ordinal_of(context);
  if (ordinal && !devices_.at(static_cast<size_t>(*ordinal)).retained && ordinal != thread_locked().own)
    return complain_locked("a context is made current that was never retained", CudaResult::kInvalidContext);
  thread_locked().current = ordinal;
  return kSuccess;
}

CudaResult FakeCudaApi::context_get_stream_priority_range(int* least, int* greatest) noexcept {
  const std::lock_guard lock(mutex_);
  if (const auto ended = enter_locked(__func__, Needs::kContext)) return *ended;
  *least = kLeastPriority;
  *greatest = kGreatestPriority;
  return kSuccess;
}

CudaResult FakeCudaApi::thread_exchange_stream_capture_mode(CudaCaptureMode* mode) noexcept {
  const std::lock_guard lock(mutex_);
  if (const auto ended = enter_locked(__func__, Needs::kNothing)) return *ended;
  std::swap(*mode, thread_locked().mode);
  return kSuccess;
}

CudaResult FakeCudaApi::stream_create_with_priority(CudaStream* stream, unsigned flags, int priority) noexcept {
  const std::lock_guard lock(mutex_);
  if (const auto ended = enter_locked(__func__, Needs::kNoCapture)) return *ended;
  const std::string name = "driver's stream " + std::to_string(streams_made_.size());
  const StreamId made = current_locked().engine->make_stream(name);
  streams_.insert(made);
  streams_made_.emplace_back(flags, priority);
  *stream = reinterpret_cast<CudaStream>(static_cast<uintptr_t>(made));
  return kSuccess;
}

CudaResult FakeCudaApi::stream_destroy(CudaStream stream) noexcept {
  const std::lock_guard lock(mutex_);
  if (const auto ended = enter_locked(__func__, Needs::kNoCapture)) return *ended;
  const StreamId named{reinterpret_cast<uintptr_t>(stream)};
  if (streams_.erase(named) == 0)
    return complain_locked("a stream is destroyed that the driver did not make", CudaResult::kInvalidHandle);
  dead_streams_.insert(named);  // the engine still runs what is enqueued on it
  return kSuccess;
}

CudaResult FakeCudaApi::stream_wait_event(CudaStream stream, CudaEvent event, unsigned) noexcept {
  const std::lock_guard lock(mutex_);
  if (const auto ended = enter_locked(__func__, Needs::kContext)) return *ended;
  const std::optional<StreamId> waiting = open_stream_locked(stream, __func__);
  if (!waiting) return CudaResult::kInvalidHandle;
  const OneEvent* const recorded = recorded_locked(event, __func__);
  if (recorded == nullptr) return CudaResult::kInvalidHandle;
  return answer_locked(current_locked().engine->wait(*waiting, recorded->recorded));
}

CudaResult FakeCudaApi::stream_is_capturing(CudaStream stream, CudaCaptureStatus* status) noexcept {
  const std::lock_guard lock(mutex_);
  if (const auto ended = enter_locked(__func__, Needs::kContext)) return *ended;
  const std::optional<StreamId> asked = stream_locked(stream, __func__);
  if (!asked) return CudaResult::kInvalidHandle;
  const bool legacy_is_barred = stream == nullptr && std::ranges::any_of(captures_, [](const auto& capture) {
                                  return capture.second.ordered_with_legacy;
                                });
  if (legacy_is_barred) return CudaResult::kStreamCaptureImplicit;
  const auto it = captures_.find(*asked);
  *status = it == captures_.end() ? CudaCaptureStatus::kNone
            : it->second.broken   ? CudaCaptureStatus::kInvalidated
                                  : CudaCaptureStatus::kActive;
  return kSuccess;
}

CudaResult FakeCudaApi::event_create(CudaEvent* event, unsigned flags) noexcept {
  const std::lock_guard lock(mutex_);
  if (const auto ended = enter_locked(__func__, Needs::kNoCapture)) return *ended;
  *event = reinterpret_cast<CudaEvent>(next_event_ += 16);  // no handle is used twice
  events_.emplace(*event, OneEvent{*thread_locked().current, (flags & kCudaEventDisableTiming) == 0});
  return kSuccess;
}

CudaResult FakeCudaApi::event_destroy(CudaEvent event) noexcept {
  const std::lock_guard lock(mutex_);
  if (const auto ended = enter_locked(__func__, Needs::kNoCapture)) return *ended;
  if (event_locked(event, __func__) == nullptr) return CudaResult::kInvalidHandle;
  events_.erase(event);
  return kSuccess;
}

CudaResult FakeCudaApi::event_record(CudaEvent event, CudaStream stream) noexcept {
  const std::lock_guard lock(mutex_);
  if (const auto ended = enter_locked(__func__, Needs::kContext)) return *ended;
  OneEvent* const one = event_locked(event, __func__);
  const std::optional<StreamId> on = open_stream_locked(stream, __func__);
  if (one == nullptr || !on) return CudaResult::kInvalidHandle;
  const Result<EventPtr> recorded = current_locked().engine->record(*on);
  if (recorded.ok()) {
    one->recorded = recorded.value();
    one->time = ++time_;
  }
  return answer_locked(recorded);
}

CudaResult FakeCudaApi::event_query(CudaEvent event) noexcept {
  const std::lock_guard lock(mutex_);
  if (const auto ended = enter_locked(__func__, Needs::kNoCapture)) return *ended;
  const OneEvent* const recorded = recorded_locked(event, __func__);
  if (recorded == nullptr) return CudaResult::kInvalidHandle;
  const Result<bool> passed = current_locked().engine->passed(recorded->recorded);
  return passed.ok() && !passed.value() ? CudaResult::kNotReady : answer_locked(passed);
}

CudaResult FakeCudaApi::event_synchronize(CudaEvent event) noexcept {
  const std::lock_guard lock(mutex_);
  if (const auto ended = enter_locked(__func__, Needs::kNoCapture)) return *ended;
  const OneEvent* const recorded = recorded_locked(event, __func__);
  if (recorded == nullptr) return CudaResult::kInvalidHandle;
  return answer_locked(current_locked().engine->synchronize(recorded->recorded));
}

CudaResult FakeCudaApi::event_elapsed_time(float* milliseconds, CudaEvent begin, CudaEvent end) noexcept {
  const std::lock_guard lock(mutex_);
  if (const auto ended = enter_locked(__func__, Needs::kNoCapture)) return *ended;
  const OneEvent* const from = recorded_locked(begin, __func__);
  const OneEvent* const to = recorded_locked(end, __func__);
  if (from == nullptr || to == nullptr) return CudaResult::kInvalidHandle;
  if (!from->timed || !to->timed)
    return complain_locked("the time of an event is asked for that has none", CudaResult::kInvalidHandle);
  for (const OneEvent* one : {from, to}) {
    const Result<bool> passed = current_locked().engine->passed(one->recorded);
    if (!passed.ok()) return answer_locked(passed);
    if (!passed.value()) return CudaResult::kNotReady;
  }
  *milliseconds = static_cast<float>(to->time - from->time);
  return kSuccess;
}

CudaResult FakeCudaApi::memcpy_host_to_device_async(CudaAddress to, const void* from, size_t bytes,
                                                    CudaStream stream) noexcept {
  return copy_locked(pointer(to), from, bytes, Direction::kIn, stream, __func__);
}

CudaResult FakeCudaApi::memcpy_device_to_host_async(void* to, CudaAddress from, size_t bytes,
                                                    CudaStream stream) noexcept {
  return copy_locked(to, pointer(from), bytes, Direction::kOut, stream, __func__);
}

CudaResult FakeCudaApi::memcpy_2d_async(const CudaMemcpy2D* copy, CudaStream stream) noexcept {
  const std::lock_guard lock(mutex_);
  if (const auto ended = enter_locked(__func__, Needs::kContext)) return *ended;
  const std::optional<StreamId> on = open_stream_locked(stream, __func__);
  if (!on) return CudaResult::kInvalidHandle;
  const bool out = copy->from_type == CudaMemoryType::kDevice && copy->to_type == CudaMemoryType::kHost;
  const bool in = copy->from_type == CudaMemoryType::kHost && copy->to_type == CudaMemoryType::kDevice;
  constexpr size_t kMostPitch = (size_t{1} << 31) - 1;  // CU_DEVICE_ATTRIBUTE_MAX_PITCH of every device there is
  if ((!out && !in) || copy->from_x + copy->from_y + copy->to_x + copy->to_y != 0 || copy->from_array != nullptr ||
      copy->to_array != nullptr || std::max(copy->from_pitch, copy->to_pitch) > kMostPitch)
    return complain_locked("a copy of rows is not described as it should be", CudaResult::kInvalidValue);
  const CopyRows rows{copy->width, copy->height, copy->to_pitch, copy->from_pitch};
  void* const to = out ? copy->to_host : pointer(copy->to_device);
  const void* const from = out ? pointer(copy->from_device) : copy->from_host;
  const size_t host_bytes = (rows.count - 1) * (out ? rows.to_pitch : rows.from_pitch) + rows.row_bytes;
  if (!registered_locked(out ? to : from, host_bytes)) ++pageable_copies_;
  return answer_locked(current_locked().engine->copy_rows(to, from, rows, out ? Direction::kOut : Direction::kIn, *on));
}

CudaResult FakeCudaApi::memory_get_info(size_t* free, size_t* total) noexcept {
  const std::lock_guard lock(mutex_);
  if (const auto ended = enter_locked(__func__, Needs::kNoCapture)) return *ended;
  const Result<DeviceMemory> memory = current_locked().engine->memory();
  if (memory.ok()) {
    *free = static_cast<size_t>(memory.value().free.count());
    *total = static_cast<size_t>(memory.value().total.count());
  }
  return answer_locked(memory);
}

CudaResult FakeCudaApi::host_register(void* data, size_t bytes, unsigned flags) noexcept {
  const std::lock_guard lock(mutex_);
  if (const auto ended = enter_locked(__func__, Needs::kNoCapture)) return *ended;
  const auto begin = reinterpret_cast<uintptr_t>(data);
  if (data == nullptr || bytes == 0) return CudaResult::kInvalidValue;
  auto it = registered_.lower_bound(begin + bytes);
  if (it != registered_.begin() && std::prev(it)->first + std::prev(it)->second.bytes > begin)
    return CudaResult::kHostMemoryAlreadyRegistered;
  const CudaResult result = answer_locked(current_locked().engine->register_host(data, bytes));
  if (result == kSuccess) {
    const bool portable = (flags & kCudaHostRegisterPortable) != 0;
    registered_.emplace(begin, Registration{bytes, portable, *thread_locked().current});
  }
  return result;
}

CudaResult FakeCudaApi::host_unregister(void* data) noexcept {
  const std::lock_guard lock(mutex_);
  if (const auto ended = enter_locked(__func__, Needs::kNoCapture)) return *ended;
  const auto it = registered_.find(reinterpret_cast<uintptr_t>(data));
  if (it == registered_.end())
    return complain_locked("host memory is unregistered that is not registered", CudaResult::kHostMemoryNotRegistered);
  // On every device that may copy it: to each it counts as a write.
  const Registration registration = it->second;
  registered_.erase(it);
  devices_[static_cast<size_t>(registration.ordinal)].engine->unregister_host(data, registration.bytes);
  if (registration.portable) {
    for (size_t other = 0; other < devices_.size(); ++other)
      if (static_cast<int>(other) != registration.ordinal)
        devices_[other].engine->host_write(data, registration.bytes, "unregister host memory");
  }
  return kSuccess;
}

std::optional<CudaResult> FakeCudaApi::enter_locked(std::string_view function, Needs needs) {
  ++calls_[std::string(function)];
  if (process_ended_) return CudaResult::kDeinitialized;
  if (const auto it = faults_.find(function); it != faults_.end() && it->second.first-- == 0) {
    const CudaResult result = it->second.second;
    faults_.erase(it);
    return result;
  }
  if (needs == Needs::kNothing) return std::nullopt;
  const OneThread& thread = thread_locked();
  if (!thread.current)
    return complain_locked(std::string(function) + " is called with no context current", CudaResult::kInvalidContext);
  if (needs == Needs::kNoCapture && thread.mode != CudaCaptureMode::kRelaxed) {
    for (auto& [stream, capture] : captures_) {
      const bool forbids = capture.mode == CudaCaptureMode::kGlobal ? thread.mode == CudaCaptureMode::kGlobal
                           : capture.mode == CudaCaptureMode::kThreadLocal
                               ? capture.thread == std::this_thread::get_id()
                               : false;
      if (!forbids) continue;
      capture.broken = true;
      return complain_locked(std::string(function) + " breaks a capture", CudaResult::kStreamCaptureUnsupported);
    }
  }
  return current_locked().lost;
}

CudaResult FakeCudaApi::complain_locked(std::string what, CudaResult result) {
  misuse_.push_back(std::move(what));
  return result;
}

std::optional<StreamId> FakeCudaApi::stream_locked(CudaStream stream, const char* function) {
  if (stream == nullptr) return current_locked().legacy;
  const StreamId named{reinterpret_cast<uintptr_t>(stream)};
  if (current_locked().engine->capturing(named).ok() && !dead_streams_.contains(named)) return named;
  complain_locked(std::string(function) + " names a stream that this device does not have", CudaResult::kInvalidHandle);
  return std::nullopt;
}

std::optional<StreamId> FakeCudaApi::open_stream_locked(CudaStream stream, const char* function) {
  const std::optional<StreamId> open = stream_locked(stream, function);
  if (!open) return std::nullopt;
  const auto capture = captures_.find(*open);
  if (capture == captures_.end()) return open;
  capture->second.broken = true;
  complain_locked(std::string(function) + " enqueues on a stream that is being captured",
                  CudaResult::kStreamCaptureIsolation);
  return std::nullopt;
}

FakeCudaApi::OneEvent* FakeCudaApi::event_locked(CudaEvent event, const char* function) {
  const auto it = events_.find(event);
  if (it == events_.end()) {
    complain_locked(std::string(function) + " names an event that does not exist", CudaResult::kInvalidHandle);
    return nullptr;
  }
  if (it->second.ordinal != *thread_locked().current) {
    complain_locked(std::string(function) + " names an event of another device", CudaResult::kInvalidHandle);
    return nullptr;
  }
  return &it->second;
}

FakeCudaApi::OneEvent* FakeCudaApi::recorded_locked(CudaEvent event, const char* function) {
  OneEvent* const one = event_locked(event, function);
  if (one == nullptr || one->recorded) return one;
  complain_locked(std::string(function) + " names an event that was never recorded", CudaResult::kInvalidHandle);
  return nullptr;
}

CudaResult FakeCudaApi::copy_locked(void* to, const void* from, size_t bytes, Direction direction, CudaStream stream,
                                    const char* function) {
  const std::lock_guard lock(mutex_);
  if (const auto ended = enter_locked(function, Needs::kContext)) return *ended;
  const std::optional<StreamId> on = open_stream_locked(stream, function);
  if (!on) return CudaResult::kInvalidHandle;
  if (!registered_locked(direction == Direction::kOut ? to : from, bytes)) ++pageable_copies_;
  return answer_locked(current_locked().engine->copy(to, from, bytes, direction, *on));
}

bool FakeCudaApi::registered_locked(const void* data, size_t bytes) {
  const auto begin = reinterpret_cast<uintptr_t>(data);
  auto it = registered_.upper_bound(begin);
  if (it == registered_.begin()) return false;
  --it;
  return begin + bytes <= it->first + it->second.bytes &&
         (it->second.portable || it->second.ordinal == *thread_locked().current);
}

template <class T>
CudaResult FakeCudaApi::answer_locked(const Result<T>& result) {
  if (result.ok()) return kSuccess;
  switch (result.failure().code) {
    case FailureCode::kOverCapacity:
      return CudaResult::kOutOfMemory;
    case FailureCode::kInvalid:
      return CudaResult::kInvalidValue;
    default:
      return current_locked().lost.value_or(CudaResult::kLaunchFailed);
  }
}

}  // namespace ebbtide::test
