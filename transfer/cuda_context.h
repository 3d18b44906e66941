// The primary context of one CUDA device: how a thread enters it, and what its errors mean.
#pragma once

#include <ebbtide/pinned_pool/result.h>
#include <ebbtide/transfer/cuda_api.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace ebbtide {

/// Threads:  any.
/// Lifetime: shared by the device and its events. The driver's count of the context is not given back: where it is the
///           last, that would wait for the device and destroy what other code still uses. CUDA's runtime does the same.
/// Errors:   code by what the driver said: kOverCapacity (out of memory), kInvalid (an argument, a handle, a stream that
///           is being captured), kUnsupported (refused by the system). All else means that the context is lost: kDeviceLost,
///           or kCancelled where the driver has ended with the process; every later call says so without asking the driver.
class CudaContext {
 public:
  /// The context that CUDA's runtime, and with it torch, uses for the device.
  static Result<std::shared_ptr<CudaContext>> retain(std::shared_ptr<CudaApi> api, int ordinal);
  CudaContext(std::shared_ptr<CudaApi> api, int ordinal) : api_(std::move(api)), ordinal_(ordinal) {}

  /// Runs `call`, a function of CudaApi& that returns a CudaResult, with this context current on the calling thread and
  /// its captures relaxed; the caller's context and mode are back afterwards. Otherwise a query by the store's thread
  /// would break the capture of a graph on the user's.
  template <class Call>
  CudaResult call(Call&& call) noexcept {
    const Entered entered(*this);
    return entered.result() == CudaResult::kSuccess ? std::forward<Call>(call)(*api_) : entered.result();
  }
  /// The same; a failure says that it happened `doing` that ("Recording an event").
  template <class Call>
  Status run(std::string_view doing, Call&& function) {
    if (auto failure = lost()) return *std::move(failure);
    const CudaResult result = call(std::forward<Call>(function));
    if (result == CudaResult::kSuccess) return success();
    return this->failure(result, doing);
  }

  /// Set once the context is lost.
  std::optional<Failure> lost() const;
  /// What `result` means. REQUIRES: it is not kSuccess.
  Failure failure(CudaResult result, std::string_view doing);

  CudaApi& api() noexcept { return *api_; }
  CudaOrdinal device() const noexcept { return device_; }

 private:
  class Entered {
   public:
    explicit Entered(CudaContext& context) noexcept;
    ~Entered();
    Entered(const Entered&) = delete;
    Entered& operator=(const Entered&) = delete;
    CudaResult result() const noexcept { return result_; }

   private:
    CudaContext& context_;
    CudaContextHandle outer_ = nullptr;
    CudaCaptureMode mode_ = CudaCaptureMode::kRelaxed;
    bool switched_ = false;
    bool relaxed_ = false;
    CudaResult result_;
  };

  std::string describe(CudaResult result, std::string_view doing) const;

  const std::shared_ptr<CudaApi> api_;
  const int ordinal_;
  CudaOrdinal device_ = 0;
  CudaContextHandle handle_ = nullptr;
  std::atomic<bool> is_lost_{false};
  mutable std::mutex mutex_;
  std::optional<Failure> lost_;  // guarded by mutex_
};

/// Whether the driver refused because a graph is being captured, which ends by itself.
constexpr bool is_capture_error(CudaResult result) noexcept {
  return result >= CudaResult::kStreamCaptureUnsupported && result <= CudaResult::kStreamCaptureWrongThread;
}

/// The code of a failure by this result; means_lost() of it: the context is lost.
FailureCode failure_code(CudaResult result) noexcept;

}  // namespace ebbtide
