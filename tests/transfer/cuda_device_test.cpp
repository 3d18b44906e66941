#include <ebbtide/transfer/cuda_device.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "tests/support/chaos_device.h"
#include "tests/support/device_rig.h"
#include "tests/support/fake_cuda_api.h"

namespace ebbtide::test {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::Pair;

constexpr size_t kBytes = 4096;

class CudaDeviceTest : public testing::Test {
 protected:
  ~CudaDeviceTest() override {
    api_->device().run_all();
    EXPECT_THAT(api_->device().races(), IsEmpty());
    EXPECT_THAT(api_->misuse(), IsEmpty());
    EXPECT_EQ(api_->pageable_copies(), 0);
    EXPECT_TRUE(api_->thread_is_as_before());
  }
  StreamId out() { return cuda_->copy_stream(Direction::kOut); }
  StreamId in() { return cuda_->copy_stream(Direction::kIn); }

  std::shared_ptr<FakeCudaApi> api_ =
      std::make_shared<FakeCudaApi>(std::vector<ChaosOptions>{{.pace = Pace::kLazy}, {.pace = Pace::kLazy}});
  std::shared_ptr<CudaDevice> cuda_ = CudaDevice::open(api_, 0).value();
  StreamId compute_ = api_->device().make_stream("compute");
};

TEST_F(CudaDeviceTest, SaysItsNameAndWhereItIs) {
  EXPECT_EQ(cuda_->name(), "Pretend GPU 0");
  EXPECT_EQ(cuda_->pci_address(), "0000:a0:00.0");
  EXPECT_FALSE(cuda_->is_host());
  EXPECT_EQ(cuda_->memory().value().total, MiB(64));
}

TEST_F(CudaDeviceTest, ItsStreamsAreNonBlockingAndOfTheGreatestPriority) {
  EXPECT_THAT(api_->streams_made(), ElementsAre(Pair(kCudaStreamNonBlocking, -5), Pair(kCudaStreamNonBlocking, -5)));
}

TEST_F(CudaDeviceTest, EventsAreMadeOnceAndUsedAgain) {
  for (int round = 0; round < 10; ++round) {
    std::vector<EventPtr> events;
    for (int i = 0; i < 5; ++i) events.push_back(cuda_->record(compute_).value());
  }
  EXPECT_EQ(api_->calls("event_create"), 5);
  EXPECT_EQ(api_->calls("event_destroy"), 0);
}

TEST_F(CudaDeviceTest, AnEventThatCouldNotBeRecordedGoesBackToThePool) {
  api_->fail("event_record", 0, CudaResult::kInvalidHandle);
  EXPECT_FALSE(cuda_->record(compute_));
  const EventPtr event = cuda_->record(compute_).value();
  EXPECT_EQ(api_->calls("event_create"), 1);
  EXPECT_FALSE(cuda_->passed(event).value());
}

TEST_F(CudaDeviceTest, AllEndsWithTheDeviceAndTheLastEvent) {
  EventPtr kept = cuda_->record(compute_).value();
  (void)cuda_->record_timed(compute_).value();
  cuda_.reset();
  EXPECT_EQ(api_->live_streams(), 0u);
  EXPECT_EQ(api_->live_events(), 1u) << "the one that is kept; the pool of the others is gone";
  std::thread([&] { kept.reset(); }).join();
  EXPECT_EQ(api_->live_events(), 0u);
  EXPECT_EQ(api_.use_count(), 1);
}

TEST_F(CudaDeviceTest, NothingWaitsForWhatIsEnqueuedWhenItEnds) {
  const auto memory = api_->device().allocate(kBytes, out(), "tensor").value();
  const auto host = registered_memory(*cuda_, kBytes);
  ASSERT_TRUE(cuda_->copy(host.get(), memory.get(), kBytes, Direction::kOut, out()));
  const EventPtr copied = cuda_->record(out()).value();
  EXPECT_EQ(api_->calls("event_synchronize"), 0);
  EXPECT_FALSE(cuda_->passed(copied).value());
  api_->device().run_all();
  ASSERT_TRUE(cuda_->passed(copied).value());
}

TEST_F(CudaDeviceTest, TheCallersContextStaysCurrent) {
  for (const std::optional<int> own : {std::optional<int>(), std::optional<int>(0), std::optional<int>(1)}) {
    SCOPED_TRACE(own ? std::to_string(*own) : "none");
    api_->use_device(own);
    const EventPtr event = cuda_->record(compute_).value();
    EXPECT_TRUE(api_->thread_is_as_before());
    ASSERT_TRUE(cuda_->wait(out(), event));
    EXPECT_TRUE(api_->thread_is_as_before());
    EXPECT_FALSE(cuda_->passed(event).value());
    EXPECT_TRUE(api_->thread_is_as_before());
    EXPECT_TRUE(cuda_->memory());
    EXPECT_TRUE(api_->thread_is_as_before());
  }
  api_->use_device(std::nullopt);
}

TEST_F(CudaDeviceTest, WhereTheContextIsCurrentItIsNotSetAgain) {
  api_->use_device(0);
  const int before = api_->calls("context_set_current");
  EXPECT_TRUE(cuda_->record(compute_));
  EXPECT_EQ(api_->calls("context_set_current"), before);
  api_->use_device(std::nullopt);
}

TEST_F(CudaDeviceTest, AFailedCallLeavesTheThreadAsItWas) {
  api_->use_device(1);
  for (const char* function : {"context_get_current", "context_set_current", "thread_exchange_stream_capture_mode"}) {
    SCOPED_TRACE(function);
    api_->fail(function, 0, CudaResult::kInvalidValue);
    EXPECT_FALSE(cuda_->memory());
    EXPECT_TRUE(api_->thread_is_as_before());
  }
  api_->use_device(std::nullopt);
}

TEST_F(CudaDeviceTest, SeveralDevicesAreEachTheirOwn) {
  const auto other = CudaDevice::open(api_, 1).value();
  EXPECT_EQ(other->pci_address(), "0000:a1:00.0");
  EXPECT_NE(other->copy_stream(Direction::kOut), out());
  const EventPtr event = cuda_->record(compute_).value();
  EXPECT_EQ(other->passed(event).failure().code, FailureCode::kInvalid);
  EXPECT_EQ(other->wait(other->copy_stream(Direction::kIn), event).failure().code, FailureCode::kInvalid);
  api_->lose(CudaResult::kIllegalAddress, 0);
  EXPECT_FALSE(cuda_->record(compute_));
  EXPECT_TRUE(other->record(other->copy_stream(Direction::kIn)));
}

TEST_F(CudaDeviceTest, HostMemoryIsRegisteredForAllDevices) {
  const auto other = CudaDevice::open(api_, 1).value();
  const auto host = registered_memory(*cuda_, kBytes);
  const StreamId stream = other->copy_stream(Direction::kOut);
  const auto memory = api_->device(1).allocate(kBytes, stream, "tensor").value();
  ASSERT_TRUE(other->copy(host.get(), memory.get(), kBytes, Direction::kOut, stream));
  ASSERT_TRUE(other->synchronize(other->record(stream).value()));
  EXPECT_THAT(api_->misuse(), IsEmpty());
  EXPECT_THAT(api_->device(1).races(), IsEmpty());
}

TEST_F(CudaDeviceTest, AnEmptyCopyIsNoCopy) {
  EXPECT_TRUE(cuda_->copy(nullptr, nullptr, 0, Direction::kIn, in()));
  EXPECT_EQ(api_->calls("memcpy_host_to_device_async"), 0);
}

TEST_F(CudaDeviceTest, TheLegacyStreamIsAStream) {
  const EventPtr event = cuda_->record(StreamId{0}).value();
  EXPECT_TRUE(cuda_->wait(StreamId{0}, event));
  EXPECT_TRUE(cuda_->synchronize(event));
}

TEST_F(CudaDeviceTest, TimesWhatLiesBetweenTwoEvents) {
  const EventPtr begin = cuda_->record_timed(compute_).value(), end = cuda_->record_timed(compute_).value();
  EXPECT_EQ(cuda_->seconds_between(begin, end).failure().code, FailureCode::kInvalid) << "not there yet";
  EXPECT_TRUE(cuda_->wait(out(), end)) << "they order as others do";
  ASSERT_TRUE(cuda_->synchronize(end));
  EXPECT_DOUBLE_EQ(cuda_->seconds_between(begin, end).value(), 1e-3);
  const EventPtr plain = cuda_->record(compute_).value();
  EXPECT_EQ(cuda_->seconds_between(begin, plain).failure().code, FailureCode::kInvalid);
  EXPECT_EQ(cuda_->seconds_between(nullptr, end).failure().code, FailureCode::kInvalid);
}

// Captures.

TEST_F(CudaDeviceTest, ACaptureOnAnotherStreamIsNotBroken) {
  const auto memory = api_->device().allocate(kBytes, compute_, "tensor").value();
  const StreamId captured = api_->device().make_stream("captured");
  for (const CudaCaptureMode mode : {CudaCaptureMode::kGlobal, CudaCaptureMode::kThreadLocal}) {
    const auto use_all = [&] {
      const auto host = registered_memory(*cuda_, kBytes);
      const EventPtr event = cuda_->record_timed(compute_).value();
      EXPECT_TRUE(cuda_->wait(out(), event));
      EXPECT_TRUE(cuda_->copy(host.get(), memory.get(), kBytes, Direction::kOut, out()));
      const EventPtr copied = cuda_->record_timed(out()).value();
      EXPECT_TRUE(cuda_->passed(copied));
      EXPECT_TRUE(cuda_->synchronize(copied));
      EXPECT_TRUE(cuda_->seconds_between(event, copied));
      EXPECT_TRUE(cuda_->memory());
      EXPECT_TRUE(cuda_->wait(compute_, copied));
      EXPECT_TRUE(CudaDevice::open(api_, 0));
    };
    api_->begin_capture(captured, mode);
    use_all();
    std::thread(use_all).join();
    EXPECT_TRUE(api_->end_capture(captured));
  }
}

TEST_F(CudaDeviceTest, AStreamThatIsBeingCapturedIsLeftAlone) {
  const auto memory = api_->device().allocate(kBytes, compute_, "tensor").value();
  const auto host = registered_memory(*cuda_, kBytes);
  const EventPtr before = cuda_->record(out()).value();
  api_->begin_capture(compute_, CudaCaptureMode::kGlobal);
  EXPECT_TRUE(cuda_->capturing(compute_).value());
  EXPECT_FALSE(cuda_->capturing(out()).value());
  EXPECT_EQ(cuda_->record(compute_).failure().code, FailureCode::kInvalid);
  EXPECT_EQ(cuda_->record_timed(compute_).failure().code, FailureCode::kInvalid);
  EXPECT_EQ(cuda_->wait(compute_, before).failure().code, FailureCode::kInvalid);
  EXPECT_EQ(cuda_->copy(host.get(), memory.get(), kBytes, Direction::kOut, compute_).failure().code,
            FailureCode::kInvalid);
  EXPECT_TRUE(api_->end_capture(compute_));
  EXPECT_FALSE(cuda_->capturing(compute_).value());
  EXPECT_TRUE(cuda_->record(compute_)) << "and the device is not lost";
}

TEST_F(CudaDeviceTest, TheLegacyStreamIsBarredWhileAStreamIsCapturedThatItOrders) {
  const StreamId captured = api_->device().make_stream("captured");
  api_->begin_capture(captured, CudaCaptureMode::kRelaxed, /*ordered_with_legacy=*/true);
  EXPECT_TRUE(cuda_->capturing(StreamId{0}).value());
  EXPECT_EQ(cuda_->record(StreamId{0}).failure().code, FailureCode::kInvalid);
  EXPECT_FALSE(cuda_->capturing(compute_).value());
  EXPECT_TRUE(api_->end_capture(captured));
}

TEST_F(CudaDeviceTest, AnEventThatCannotBeToldNowHasNotPassed) {
  const EventPtr event = cuda_->record(compute_).value();
  api_->device().run_all();
  for (const CudaResult result :
       {CudaResult::kStreamCaptureUnsupported, CudaResult::kOutOfMemory, CudaResult::kNotPermitted}) {
    api_->fail("event_query", 0, result);
    EXPECT_FALSE(cuda_->passed(event).value()) << "or memory would be reused under a copy";
  }
  EXPECT_TRUE(cuda_->passed(event).value());
}

// Errors: each call of the driver, failing in each way.

/// A device to break.
class Victim {
 public:
  /// The driver's functions that some call of Device asks.
  static constexpr std::array kFunctions = {"event_create",
                                            "event_record",
                                            "stream_is_capturing",
                                            "stream_wait_event",
                                            "event_query",
                                            "event_synchronize",
                                            "event_elapsed_time",
                                            "memory_get_info",
                                            "memcpy_host_to_device_async",
                                            "memcpy_device_to_host_async",
                                            "memcpy_2d_async",
                                            "host_register"};

  Victim() { EXPECT_TRUE(cuda_->synchronize(timed_)); }

  FakeCudaApi& api() { return *api_; }
  CudaDevice& cuda() { return *cuda_; }

  /// Makes the call that asks the driver's `function`. Copies go in before they come out.
  std::optional<Failure> call(const std::string& function) {
    if (function == "event_create") return failure_of(cuda_->record_timed(compute_));  // the pool has one: in use
    if (function == "event_record") return failure_of(cuda_->record(compute_));
    if (function == "stream_is_capturing") return failure_of(cuda_->capturing(compute_));
    if (function == "stream_wait_event") return failure_of(cuda_->wait(stream(), event_));
    if (function == "event_query") return failure_of(cuda_->passed(event_));
    if (function == "event_synchronize") return failure_of(cuda_->synchronize(event_));
    if (function == "event_elapsed_time") return failure_of(cuda_->seconds_between(timed_, timed_));
    if (function == "memory_get_info") return failure_of(cuda_->memory());
    if (function == "memcpy_host_to_device_async")
      return failure_of(cuda_->copy(memory_.get(), host_.data(), kBytes, Direction::kIn, stream()));
    if (function == "memcpy_device_to_host_async")
      return failure_of(cuda_->copy(host_.data(), memory_.get(), kBytes, Direction::kOut, stream()));
    if (function == "memcpy_2d_async")
      return failure_of(cuda_->copy_rows(host_.data(), memory_.get(), {64, 4, 64, 128}, Direction::kOut, stream()));
    if (function == "host_register") return failure_of(cuda_->register_host(host_.data(), host_.size()));
    ADD_FAILURE() << "no call asks for " << function;
    return std::nullopt;
  }
  /// The same with `result` for the driver's answer, once.
  std::optional<Failure> call(const std::string& function, CudaResult result) {
    api_->fail(function, 0, result);
    return call(function);
  }

 private:
  template <class T>
  static std::optional<Failure> failure_of(const Result<T>& result) {
    return result.ok() ? std::nullopt : std::optional(result.failure());
  }
  StreamId stream() { return cuda_->copy_stream(Direction::kIn); }

  std::vector<std::byte> host_ = std::vector<std::byte>(kBytes);
  std::shared_ptr<FakeCudaApi> api_ = std::make_shared<FakeCudaApi>();
  std::shared_ptr<CudaDevice> cuda_ = CudaDevice::open(api_, 0).value();
  StreamId compute_ = api_->device().make_stream("compute");
  EventPtr event_ = cuda_->record(compute_).value();
  EventPtr timed_ = cuda_->record_timed(compute_).value();
  std::shared_ptr<std::byte> memory_ =
      api_->device().allocate(kBytes, cuda_->copy_stream(Direction::kIn), "tensor").value();
};

TEST(CudaDeviceErrors, AFailureSaysWhatWasTriedAndWhatTheDriverSays) {
  Victim victim;
  const auto failure = victim.call("event_record", CudaResult::kIllegalAddress);
  ASSERT_TRUE(failure);
  EXPECT_EQ(failure->message, "Recording an event failed on cuda:0: CUDA_ERROR_700 (what a driver says of it).");
}

TEST(CudaDeviceErrors, ALostContextIsLostForEveryCall) {
  for (const std::string function : Victim::kFunctions) {
    for (const CudaResult result :
         {CudaResult::kIllegalAddress, CudaResult::kLaunchFailed, CudaResult::kEccUncorrectable,
          CudaResult::kContextIsDestroyed, CudaResult::kInvalidContext, CudaResult::kUnknown, CudaResult{12345}}) {
      SCOPED_TRACE(function + " " + std::to_string(static_cast<int>(result)));
      Victim victim;
      const auto first = victim.call(function, result);
      ASSERT_TRUE(first);
      EXPECT_EQ(first->code, FailureCode::kDeviceLost);
      for (const std::string other : Victim::kFunctions) {
        const int asked = victim.api().calls(other);
        const auto later = victim.call(other);
        ASSERT_TRUE(later) << other;
        EXPECT_EQ(later->message, first->message) << other;
        EXPECT_EQ(victim.api().calls(other), asked) << other << ": the driver is not asked again";
      }
    }
  }
}

TEST(CudaDeviceErrors, AtTheProcessesEndEveryCallIsCancelled) {
  Victim victim;
  victim.api().end_process();
  for (const std::string function : Victim::kFunctions) {
    const auto failure = victim.call(function);
    ASSERT_TRUE(failure) << function;
    EXPECT_EQ(failure->code, FailureCode::kCancelled) << function;
  }
}

TEST(CudaDeviceErrors, WithoutMemoryForAnEventTheNextCallMayHaveOne) {
  for (const std::string function : {"event_create", "event_record"}) {
    Victim victim;
    const auto failure = victim.call(function, CudaResult::kOutOfMemory);
    ASSERT_TRUE(failure) << function;
    EXPECT_EQ(failure->code, FailureCode::kOverCapacity);
    EXPECT_FALSE(victim.call(function)) << function;
  }
}

TEST(CudaDeviceErrors, OneCallsFailureIsThatCallsAlone) {
  struct Case {
    CudaResult result;
    FailureCode code;
  };
  for (const std::string function : Victim::kFunctions) {
    if (function == "event_query") continue;  // AnEventThatCannotBeToldNowHasNotPassed
    for (const Case& each : {Case{CudaResult::kInvalidValue, FailureCode::kInvalid},
                             Case{CudaResult::kInvalidHandle, FailureCode::kInvalid},
                             Case{CudaResult::kHostMemoryAlreadyRegistered, FailureCode::kInvalid},
                             Case{CudaResult::kStreamCaptureUnsupported, FailureCode::kInvalid},
                             Case{CudaResult::kOutOfMemory, FailureCode::kOverCapacity},
                             Case{CudaResult::kNotSupported, FailureCode::kUnsupported},
                             Case{CudaResult::kOperatingSystem, FailureCode::kUnsupported}}) {
      SCOPED_TRACE(function + " " + std::to_string(static_cast<int>(each.result)));
      Victim victim;
      const auto failure = victim.call(function, each.result);
      ASSERT_TRUE(failure);
      EXPECT_EQ(failure->code, each.code);
      EXPECT_FALSE(victim.call(function)) << "the next call is none the worse";
    }
  }
}

TEST(CudaDeviceErrors, AnEventThatBecameInvalidMeansThatItsContextIsGone) {
  Victim victim;
  const auto failure = victim.call("event_query", CudaResult::kInvalidHandle);
  ASSERT_TRUE(failure);
  EXPECT_EQ(failure->code, FailureCode::kDeviceLost);
  EXPECT_TRUE(victim.call("event_record"));
}

TEST(CudaDeviceErrors, ALostDeviceEndsWithoutAWord) {
  Victim victim;
  victim.api().lose(CudaResult::kIllegalAddress);
  EXPECT_TRUE(victim.call("event_query"));
  std::vector<std::byte> host(kBytes);
  victim.cuda().unregister_host(host.data(), host.size());
}

TEST(CudaDeviceErrors, OpenFailsWithEachOfItsCallsAndLeavesNothing) {
  for (const std::string function :
       {"init", "device_get", "primary_context_retain", "device_get_name", "device_get_pci_bus_id",
        "context_get_current", "context_set_current", "thread_exchange_stream_capture_mode",
        "context_get_stream_priority_range", "stream_create_with_priority"}) {
    for (int skip = 0; skip < (function == "stream_create_with_priority" ? 2 : 1); ++skip) {
      SCOPED_TRACE(function);
      auto api = std::make_shared<FakeCudaApi>();
      api->fail(function, skip, CudaResult::kOutOfMemory);
      const auto opened = CudaDevice::open(api, 0);
      ASSERT_FALSE(opened);
      EXPECT_EQ(opened.failure().code, FailureCode::kOverCapacity);
      EXPECT_EQ(api->live_streams(), 0u);
      EXPECT_TRUE(api->thread_is_as_before());
      EXPECT_THAT(api->misuse(), IsEmpty());
    }
  }
}

TEST(CudaDeviceErrors, ADeviceThatIsNotThereIsUnsupported) {
  auto api = std::make_shared<FakeCudaApi>();
  EXPECT_EQ(CudaDevice::open(api, 1).failure().code, FailureCode::kUnsupported);
  api->fail("init", 0, CudaResult::kNoDevice);
  EXPECT_EQ(CudaDevice::open(api, 0).failure().code, FailureCode::kUnsupported);
}

TEST(CudaDeviceErrors, WithoutANameForTheErrorItsNumberIsSaid) {
  Victim victim;
  victim.api().fail("get_error_name", 0, CudaResult::kInvalidValue);
  victim.api().fail("get_error_string", 0, CudaResult::kInvalidValue);
  EXPECT_EQ(victim.call("memory_get_info", CudaResult{4711})->message,
            "Asking for free memory failed on cuda:0: CUDA error 4711.");
}

}  // namespace
}  // namespace ebbtide::test
