#include <ebbtide/transfer/cuda_api.h>
#include <ebbtide/transfer/cuda_entries.h>

#include <dlfcn.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

namespace ebbtide {
namespace {

using testing::HasSubstr;

/// As whoever computes on CUDA has loaded it before. The stub's name among libraries is libcuda.so.1.
void load(const char* stub) {
  if (dlopen(stub, RTLD_NOW) == nullptr) {
    std::fprintf(stderr, "%s\n", dlerror());
    std::_Exit(2);
  }
}

// Each in a process of its own: a library once loaded stays.

TEST(CudaApiDeathTest, IsNotLoadedForThePurpose) {
  const auto api = CudaApi::of_process();
  ASSERT_FALSE(api) << "nothing in this program loads CUDA";
  EXPECT_EQ(api.failure().code, FailureCode::kUnsupported);
  EXPECT_THAT(api.failure().message, HasSubstr("libcuda.so.1"));
}

TEST(CudaApiDeathTest, ADriverThatIsTooOldIsNamedWithWhatItLacks) {
  EXPECT_EXIT(
      {
        load(EBBTIDE_OLD_DRIVER_STUB);
        const auto api = CudaApi::of_process();
        if (api.ok()) std::_Exit(1);
        std::fprintf(stderr, "%s", api.failure().message.c_str());
        std::_Exit(api.failure().code == FailureCode::kUnsupported ? 0 : 1);
      },
      testing::ExitedWithCode(0), "too old.*cuGetErrorName, .*cuMemHostUnregister\\.");
}

/// The calls that did not reach their function of the driver.
std::vector<std::string> misled(CudaApi& api) {
  std::vector<std::string> wrong;
  int number = 1000;
  const auto expect = [&](const char* name, CudaResult result) {
    if (static_cast<int>(result) != number++) wrong.push_back(name);
  };
  // In the order of EBBTIDE_CUDA_ENTRIES.
  expect("init", api.init(0));
  expect("get_error_name", api.get_error_name(CudaResult::kSuccess, nullptr));
  expect("get_error_string", api.get_error_string(CudaResult::kSuccess, nullptr));
  expect("device_get", api.device_get(nullptr, 0));
  expect("device_get_name", api.device_get_name(nullptr, 0, 0));
  expect("device_get_pci_bus_id", api.device_get_pci_bus_id(nullptr, 0, 0));
  expect("primary_context_retain", api.primary_context_retain(nullptr, 0));
  expect("context_get_current", api.context_get_current(nullptr));
  expect("context_set_current", api.context_set_current(nullptr));
  expect("context_get_stream_priority_range", api.context_get_stream_priority_range(nullptr, nullptr));
  expect("thread_exchange_stream_capture_mode", api.thread_exchange_stream_capture_mode(nullptr));
  expect("stream_create_with_priority", api.stream_create_with_priority(nullptr, 0, 0));
  expect("stream_destroy", api.stream_destroy(nullptr));
  expect("stream_wait_event", api.stream_wait_event(nullptr, nullptr, 0));
  expect("stream_is_capturing", api.stream_is_capturing(nullptr, nullptr));
  expect("event_create", api.event_create(nullptr, 0));
  expect("event_destroy", api.event_destroy(nullptr));
  expect("event_record", api.event_record(nullptr, nullptr));
  expect("event_query", api.event_query(nullptr));
  expect("event_synchronize", api.event_synchronize(nullptr));
  expect("event_elapsed_time", api.event_elapsed_time(nullptr, nullptr, nullptr));
  expect("memcpy_host_to_device_async", api.memcpy_host_to_device_async(0, nullptr, 0, nullptr));
  expect("memcpy_device_to_host_async", api.memcpy_device_to_host_async(nullptr, 0, 0, nullptr));
  expect("memcpy_2d_async", api.memcpy_2d_async(nullptr, nullptr));
  expect("memory_get_info", api.memory_get_info(nullptr, nullptr));
  expect("host_register", api.host_register(nullptr, 0, 0));
  expect("host_unregister", api.host_unregister(nullptr));
#define EBBTIDE_ONE(name, symbol, ...) +1
  if (number != 1000 EBBTIDE_CUDA_ENTRIES(EBBTIDE_ONE)) wrong.push_back("a function that is not tried here");
  return wrong;
}

TEST(CudaApiDeathTest, EachCallReachesItsFunctionOfTheDriver) {
  EXPECT_EXIT(
      {
        load(EBBTIDE_DRIVER_STUB);
        const auto api = CudaApi::of_process();
        if (!api.ok()) std::_Exit(1);
        for (const std::string& name : misled(*api.value())) std::fprintf(stderr, "%s ", name.c_str());
        std::fprintf(stderr, "end");
        std::_Exit(0);
      },
      testing::ExitedWithCode(0), "^end$");
}

}  // namespace
}  // namespace ebbtide
