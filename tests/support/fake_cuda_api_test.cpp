#include "tests/support/fake_cuda_api.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <string>
#include <thread>

namespace ebbtide::test {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

constexpr auto kSuccess = CudaResult::kSuccess;

CudaStream handle(StreamId stream) {
  return reinterpret_cast<CudaStream>(static_cast<uintptr_t>(stream));
}

class FakeCudaApiTest : public testing::Test {
 protected:
  FakeCudaApiTest() {
    EXPECT_EQ(api_.init(0), kSuccess);
    for (const int ordinal : {0, 1})
      EXPECT_EQ(api_.primary_context_retain(&contexts_.at(static_cast<size_t>(ordinal)), ordinal), kSuccess);
    api_.use_device(0);
    EXPECT_EQ(api_.event_create(&event_, kCudaEventDisableTiming), kSuccess);
    EXPECT_EQ(api_.stream_create_with_priority(&stream_, kCudaStreamNonBlocking, 0), kSuccess);
  }
  /// The one complaint so far holds `text`.
  void expect_complaint(const std::string& text) { EXPECT_THAT(api_.misuse(), ElementsAre(HasSubstr(text))); }

  FakeCudaApi api_{{{.pace = Pace::kLazy}, {.pace = Pace::kLazy}}};
  std::array<CudaContextHandle, 2> contexts_{};
  CudaEvent event_ = nullptr;
  CudaStream stream_ = nullptr;
  std::array<std::byte, 64> host_{};
};

TEST_F(FakeCudaApiTest, AnEventPassesWithItsStream) {
  ASSERT_EQ(api_.event_record(event_, stream_), kSuccess);
  EXPECT_EQ(api_.event_query(event_), CudaResult::kNotReady);
  EXPECT_EQ(api_.event_synchronize(event_), kSuccess);
  EXPECT_EQ(api_.event_query(event_), kSuccess);
  EXPECT_THAT(api_.misuse(), IsEmpty());
}

TEST_F(FakeCudaApiTest, AMissingWaitIsARace) {
  const auto memory = api_.device().allocate(64, StreamId{reinterpret_cast<uintptr_t>(stream_)}, "tensor").value();
  const StreamId compute = api_.device().make_stream("compute");
  ASSERT_EQ(api_.host_register(host_.data(), host_.size(), kCudaHostRegisterPortable), kSuccess);
  ASSERT_TRUE(api_.device().launch(compute, "fill", {}, {{memory.get(), 64}}, [] {}));
  ASSERT_EQ(api_.memcpy_device_to_host_async(host_.data(), reinterpret_cast<uintptr_t>(memory.get()), 64, stream_),
            kSuccess);
  EXPECT_THAT(api_.device().races(), SizeIs(1));
}

TEST_F(FakeCudaApiTest, AnEventNeverRecordedIsMisuse) {
  EXPECT_EQ(api_.event_query(event_), CudaResult::kInvalidHandle);
  expect_complaint("never recorded");
}

TEST_F(FakeCudaApiTest, AnEventThatIsGoneIsMisuse) {
  ASSERT_EQ(api_.event_destroy(event_), kSuccess);
  EXPECT_EQ(api_.event_record(event_, stream_), CudaResult::kInvalidHandle);
  expect_complaint("does not exist");
}

TEST_F(FakeCudaApiTest, AnotherDevicesEventIsMisuse) {
  api_.use_device(1);
  EXPECT_NE(api_.event_record(event_, handle(api_.device(1).make_stream("other"))), kSuccess);
  expect_complaint("of another device");
}

TEST_F(FakeCudaApiTest, AStreamThatIsGoneIsMisuse) {
  ASSERT_EQ(api_.stream_destroy(stream_), kSuccess);
  EXPECT_EQ(api_.event_record(event_, stream_), CudaResult::kInvalidHandle);
  expect_complaint("a stream that this device does not have");
}

TEST_F(FakeCudaApiTest, AnotherDevicesStreamIsMisuse) {
  EXPECT_EQ(api_.event_record(event_, handle(api_.device(1).make_stream("other"))), CudaResult::kInvalidHandle);
  EXPECT_THAT(api_.misuse(), testing::Contains(HasSubstr("a stream that this device does not have")));
}

TEST_F(FakeCudaApiTest, CopiesOfUnregisteredHostMemoryAreCounted) {
  const auto memory = api_.device().allocate(64, StreamId{reinterpret_cast<uintptr_t>(stream_)}, "tensor").value();
  ASSERT_EQ(api_.host_register(host_.data(), 32, kCudaHostRegisterPortable), kSuccess);
  (void)api_.memcpy_device_to_host_async(host_.data(), reinterpret_cast<uintptr_t>(memory.get()), 64, stream_);
  EXPECT_EQ(api_.pageable_copies(), 1);
}

TEST_F(FakeCudaApiTest, WithoutPortableHostMemoryIsOneDevices) {
  ASSERT_EQ(api_.host_register(host_.data(), host_.size(), 0), kSuccess);
  api_.use_device(1);
  CudaStream stream = nullptr;
  ASSERT_EQ(api_.stream_create_with_priority(&stream, kCudaStreamNonBlocking, 0), kSuccess);
  const auto memory = api_.device(1).allocate(64, StreamId{reinterpret_cast<uintptr_t>(stream)}, "tensor").value();
  (void)api_.memcpy_device_to_host_async(host_.data(), reinterpret_cast<uintptr_t>(memory.get()), 64, stream);
  EXPECT_EQ(api_.pageable_copies(), 1);
}

TEST_F(FakeCudaApiTest, OverlappingRegistrationsAreRefused) {
  ASSERT_EQ(api_.host_register(host_.data() + 16, 16, 0), kSuccess);
  EXPECT_EQ(api_.host_register(host_.data(), 64, 0), CudaResult::kHostMemoryAlreadyRegistered);
  EXPECT_EQ(api_.host_register(host_.data() + 31, 8, 0), CudaResult::kHostMemoryAlreadyRegistered);
  EXPECT_EQ(api_.host_register(host_.data() + 32, 8, 0), kSuccess);
  EXPECT_EQ(api_.host_register(host_.data(), 16, 0), kSuccess);
}

TEST_F(FakeCudaApiTest, UnregisteringUnderACopyIsARace) {
  const auto memory = api_.device().allocate(64, StreamId{reinterpret_cast<uintptr_t>(stream_)}, "tensor").value();
  ASSERT_EQ(api_.host_register(host_.data(), 64, kCudaHostRegisterPortable), kSuccess);
  ASSERT_EQ(api_.memcpy_device_to_host_async(host_.data(), reinterpret_cast<uintptr_t>(memory.get()), 64, stream_),
            kSuccess);
  ASSERT_EQ(api_.host_unregister(host_.data()), kSuccess);
  EXPECT_THAT(api_.device().races(), SizeIs(1));
}

TEST_F(FakeCudaApiTest, WithoutAContextNothingWorks) {
  api_.use_device(std::nullopt);
  EXPECT_EQ(api_.event_create(&event_, 0), CudaResult::kInvalidContext);
  expect_complaint("no context current");
}

TEST_F(FakeCudaApiTest, AContextLeftBehindIsSeen) {
  EXPECT_TRUE(api_.thread_is_as_before());
  ASSERT_EQ(api_.context_set_current(contexts_[1]), kSuccess);
  EXPECT_FALSE(api_.thread_is_as_before());
  ASSERT_EQ(api_.context_set_current(contexts_[0]), kSuccess);
  EXPECT_TRUE(api_.thread_is_as_before());
  auto mode = CudaCaptureMode::kRelaxed;
  ASSERT_EQ(api_.thread_exchange_stream_capture_mode(&mode), kSuccess);
  EXPECT_FALSE(api_.thread_is_as_before());
}

TEST_F(FakeCudaApiTest, AQueryBreaksAGlobalCaptureUnlessRelaxed) {
  ASSERT_EQ(api_.event_record(event_, stream_), kSuccess);
  const StreamId captured = api_.device().make_stream("captured");
  api_.begin_capture(captured, CudaCaptureMode::kGlobal);
  auto mode = CudaCaptureMode::kRelaxed;
  ASSERT_EQ(api_.thread_exchange_stream_capture_mode(&mode), kSuccess);
  EXPECT_EQ(api_.event_query(event_), CudaResult::kNotReady);
  ASSERT_EQ(api_.thread_exchange_stream_capture_mode(&mode), kSuccess);
  EXPECT_TRUE(api_.end_capture(captured));
  api_.begin_capture(captured, CudaCaptureMode::kGlobal);
  EXPECT_EQ(api_.event_query(event_), CudaResult::kStreamCaptureUnsupported);
  CudaCaptureStatus status{};
  ASSERT_EQ(api_.stream_is_capturing(handle(captured), &status), kSuccess);
  EXPECT_EQ(status, CudaCaptureStatus::kInvalidated);
  EXPECT_FALSE(api_.end_capture(captured));
  expect_complaint("breaks a capture");
}

TEST_F(FakeCudaApiTest, AThreadLocalCaptureIsBrokenByItsThreadAlone) {
  ASSERT_EQ(api_.event_record(event_, stream_), kSuccess);
  const StreamId captured = api_.device().make_stream("captured");
  api_.begin_capture(captured, CudaCaptureMode::kThreadLocal);
  std::thread([&] {
    api_.use_device(0);
    EXPECT_EQ(api_.event_query(event_), CudaResult::kNotReady);
  }).join();
  EXPECT_THAT(api_.misuse(), IsEmpty());
  EXPECT_EQ(api_.event_query(event_), CudaResult::kStreamCaptureUnsupported);
  EXPECT_FALSE(api_.end_capture(captured));
}

TEST_F(FakeCudaApiTest, WorkOnACapturedStreamBreaksTheCapture) {
  const StreamId captured = api_.device().make_stream("captured");
  api_.begin_capture(captured, CudaCaptureMode::kRelaxed);
  EXPECT_NE(api_.event_record(event_, handle(captured)), kSuccess);
  EXPECT_FALSE(api_.end_capture(captured));
  expect_complaint("on a stream that is being captured");
}

TEST_F(FakeCudaApiTest, FaultsComeWhenToldAndOnce) {
  for (const std::string_view function : FakeCudaApi::functions()) EXPECT_FALSE(function.empty());
  api_.fail("event_record", 1, CudaResult::kOutOfMemory);
  EXPECT_EQ(api_.event_record(event_, stream_), kSuccess);
  EXPECT_EQ(api_.event_record(event_, stream_), CudaResult::kOutOfMemory);
  EXPECT_EQ(api_.event_record(event_, stream_), kSuccess);
  EXPECT_EQ(api_.calls("event_record"), 3);
}

TEST_F(FakeCudaApiTest, LossAndEndAreForEver) {
  api_.lose(CudaResult::kLaunchFailed, 0);
  EXPECT_EQ(api_.event_record(event_, stream_), CudaResult::kLaunchFailed);
  api_.use_device(1);
  EXPECT_EQ(api_.event_create(&event_, 0), kSuccess) << "the other device works";
  api_.end_process();
  EXPECT_EQ(api_.event_create(&event_, 0), CudaResult::kDeinitialized);
  CudaContextHandle context = nullptr;
  EXPECT_EQ(api_.context_get_current(&context), CudaResult::kDeinitialized);
}

}  // namespace
}  // namespace ebbtide::test
