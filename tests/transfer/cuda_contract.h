// What CudaDevice promises beyond Device, as tests over a rig that can capture graphs.
#pragma once

#include <ebbtide/transfer/cuda_device.h>

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>

#include "tests/transfer/device_contract.h"

namespace ebbtide::test {

/// Rig: has also cuda(), begin_capture(stream), in global mode, and end_capture(stream).
template <class Rig>
class CudaContract : public DeviceContract<Rig> {};

TYPED_TEST_SUITE_P(CudaContract);

TYPED_TEST_P(CudaContract, ACaptureIsLeftAloneAndNotBrokenByAnyThread) {
  const StreamId captured = this->rig_->make_stream("captured"), other = this->rig_->make_stream("other");
  const auto memory = this->rig_->allocate(kContractBytes, other);
  const auto host = this->rig_->host(kContractBytes);
  this->rig_->hold(other, kHoldTime);
  const EventPtr before = this->record(other);

  this->rig_->begin_capture(captured);
  EXPECT_TRUE(this->device().capturing(captured).value());
  EXPECT_FALSE(this->device().capturing(other).value());
  EXPECT_EQ(this->device().record(captured).failure().code, FailureCode::kInvalid);
  EXPECT_EQ(this->device().wait(captured, before).failure().code, FailureCode::kInvalid);
  const auto use_all = [&] {
    for (int i = 0; i < 50; ++i) {
      EXPECT_TRUE(this->device().passed(before));
      EXPECT_TRUE(this->device().memory());
      this->order(other, this->out());
      this->copy_out(host.get(), memory.get());
      this->order(this->out(), other);
      (void)registered_memory(this->device(), kContractBytes);
    }
    EXPECT_TRUE(this->device().synchronize(this->record(this->out())));
  };
  use_all();
  std::thread(use_all).join();
  EXPECT_TRUE(this->rig_->end_capture(captured));
  EXPECT_FALSE(this->device().capturing(captured).value());
  EXPECT_NE(this->record(captured), nullptr) << "its stream is one like others again";
}

TYPED_TEST_P(CudaContract, TimesWhatLiesBetweenTwoEvents) {
  const StreamId compute = this->rig_->make_stream("compute");
  const EventPtr begin = this->rig_->cuda().record_timed(compute).value();
  this->rig_->hold(compute, kHoldTime);
  const EventPtr end = this->rig_->cuda().record_timed(compute).value();
  EXPECT_EQ(this->rig_->cuda().seconds_between(begin, end).failure().code, FailureCode::kInvalid) << "not there yet";
  ASSERT_TRUE(this->device().synchronize(end));
  const Result<double> seconds = this->rig_->cuda().seconds_between(begin, end);
  ASSERT_TRUE(seconds) << seconds.failure().message;
  EXPECT_GE(seconds.value(), this->rig_->least_seconds(kHoldTime));
  EXPECT_LT(seconds.value(), 10);
}

REGISTER_TYPED_TEST_SUITE_P(CudaContract, ACaptureIsLeftAloneAndNotBrokenByAnyThread, TimesWhatLiesBetweenTwoEvents);

}  // namespace ebbtide::test
