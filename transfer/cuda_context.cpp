#include <ebbtide/transfer/cuda_context.h>
#include <ebbtide/transfer/device.h>

namespace ebbtide {

FailureCode failure_code(CudaResult result) noexcept {
  if (is_capture_error(result)) return FailureCode::kInvalid;
  switch (result) {
    case CudaResult::kOutOfMemory:
      return FailureCode::kOverCapacity;
    case CudaResult::kInvalidValue:
    case CudaResult::kInvalidHandle:
    case CudaResult::kNotReady:
    case CudaResult::kHostMemoryAlreadyRegistered:
    case CudaResult::kHostMemoryNotRegistered:
      return FailureCode::kInvalid;
    case CudaResult::kNoDevice:
    case CudaResult::kInvalidDevice:
    case CudaResult::kOperatingSystem:
    case CudaResult::kNotPermitted:
    case CudaResult::kNotSupported:
      return FailureCode::kUnsupported;
    case CudaResult::kDeinitialized:
      return FailureCode::kCancelled;
    default:
      return FailureCode::kDeviceLost;
  }
}

Result<std::shared_ptr<CudaContext>> CudaContext::retain(std::shared_ptr<CudaApi> api, int ordinal) {
  auto context = std::make_shared<CudaContext>(std::move(api), ordinal);
  CudaApi& driver = *context->api_;
  CudaResult result = driver.init(0);
  if (result == CudaResult::kSuccess) result = driver.device_get(&context->device_, ordinal);
  if (result == CudaResult::kSuccess) result = driver.primary_context_retain(&context->handle_, context->device_);
  if (result != CudaResult::kSuccess) return context->failure(result, "Opening the device");
  return context;
}

std::optional<Failure> CudaContext::lost() const {
  if (!is_lost_.load(std::memory_order_acquire)) return std::nullopt;
  const std::lock_guard lock(mutex_);
  return lost_;
}

Failure CudaContext::failure(CudaResult result, std::string_view doing) {
  Failure failure{failure_code(result), 0, describe(result, doing)};
  if (means_lost(failure.code)) {
    const std::lock_guard lock(mutex_);
    if (!lost_) lost_ = failure;
    is_lost_.store(true, std::memory_order_release);
  }
  return failure;
}

std::string CudaContext::describe(CudaResult result, std::string_view doing) const {
  const char* name = nullptr;
  const char* text = nullptr;
  const bool named = api_->get_error_name(result, &name) == CudaResult::kSuccess && name != nullptr;
  const bool told = api_->get_error_string(result, &text) == CudaResult::kSuccess && text != nullptr;
  return std::string(doing) + " failed on cuda:" + std::to_string(ordinal_) + ": " +
         (named ? name : "CUDA error " + std::to_string(static_cast<int>(result))) +
         (told ? " (" + std::string(text) + ")." : ".");
}

CudaContext::Entered::Entered(CudaContext& context) noexcept : context_(context) {
  CudaApi& api = *context_.api_;
  result_ = api.context_get_current(&outer_);
  if (result_ != CudaResult::kSuccess) return;
  if (outer_ != context_.handle_) {
    result_ = api.context_set_current(context_.handle_);
    if (result_ != CudaResult::kSuccess) return;
    switched_ = true;
  }
  result_ = api.thread_exchange_stream_capture_mode(&mode_);
  relaxed_ = result_ == CudaResult::kSuccess;
}

// Putting back fails only where the driver is ending or the caller has destroyed its own context: nobody is to be told.
CudaContext::Entered::~Entered() {
  CudaApi& api = *context_.api_;
  if (relaxed_) (void)api.thread_exchange_stream_capture_mode(&mode_);
  if (switched_) (void)api.context_set_current(outer_);
}

}  // namespace ebbtide
