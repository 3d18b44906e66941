#include "tests/gpu/gpu_driver.h"

#include <dlfcn.h>

namespace ebbtide::test {

Result<GpuDriver> GpuDriver::open() {
  const auto unsupported = [](std::string why) { return Failure{FailureCode::kUnsupported, 0, std::move(why)}; };
  void* const library = dlopen("libcuda.so.1", RTLD_NOW);  // stays: CudaApi::of_process() looks for it
  if (library == nullptr) return unsupported("no CUDA driver: " + std::string(dlerror()));
  GpuDriver driver;
  std::string missing;
  const auto load = [&](auto& function, const char* symbol) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, symbol));
    if (function == nullptr) missing += std::string(" ") + symbol;
  };
  load(driver.device_get_count, "cuDeviceGetCount");
  load(driver.memory_allocate, "cuMemAlloc_v2");
  load(driver.memory_free, "cuMemFree_v2");
  load(driver.memset_async, "cuMemsetD8Async");
  load(driver.memcpy_device_to_host, "cuMemcpyDtoH_v2");
  load(driver.module_load_data, "cuModuleLoadData");
  load(driver.module_get_function, "cuModuleGetFunction");
  load(driver.module_unload, "cuModuleUnload");
  load(driver.launch_kernel, "cuLaunchKernel");
  load(driver.context_synchronize, "cuCtxSynchronize");
  load(driver.stream_begin_capture, "cuStreamBeginCapture_v2");
  load(driver.stream_end_capture, "cuStreamEndCapture");
  load(driver.graph_destroy, "cuGraphDestroy");
  if (!missing.empty()) return unsupported("the CUDA driver lacks" + missing);
  const auto api = CudaApi::of_process();
  if (!api) return api.failure();
  if (const CudaResult started = api.value()->init(0); started != CudaResult::kSuccess)
    return unsupported("the CUDA driver does not start: error " + std::to_string(static_cast<int>(started)));
  int devices = 0;
  if (driver.device_get_count(&devices) != CudaResult::kSuccess || devices == 0) return unsupported("no CUDA device");
  return driver;
}

std::optional<std::string> GpuDriver::unavailable() {
  const auto driver = open();
  return driver.ok() ? std::nullopt : std::optional(driver.failure().message);
}

}  // namespace ebbtide::test
