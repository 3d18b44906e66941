#include "tests/gpu/gpu_rig.h"

#include <gtest/gtest.h>

#include "tests/gpu/kernels.h"
#include "tests/support/device_rig.h"

namespace ebbtide::test {
namespace {

CudaStream handle(StreamId stream) {
  return reinterpret_cast<CudaStream>(static_cast<uintptr_t>(stream));
}

CudaAddress address(const void* data) {
  return reinterpret_cast<uintptr_t>(data);
}

void expect_success(CudaResult result, const char* doing) {
  EXPECT_EQ(static_cast<int>(result), 0) << doing;
}

}  // namespace

GpuRig::GpuRig()
    : driver_(GpuDriver::open().value()),
      api_(CudaApi::of_process().value()),
      device_(CudaDevice::open(api_, 0).value()) {
  expect_success(api_->primary_context_retain(&context_, 0), "retaining the context");
  enter();
  expect_success(driver_.module_load_data(&module_, kKernels), "compiling the kernels");
  expect_success(driver_.module_get_function(&spin_, module_, "spin"), "spin");
  expect_success(driver_.module_get_function(&write_, module_, "write"), "write");
  expect_success(driver_.module_get_function(&check_, module_, "check"), "check");
  expect_success(driver_.memory_allocate(&wrong_, sizeof(uint32_t)), "allocating");
  expect_success(driver_.memset_async(wrong_, 0, sizeof(uint32_t), nullptr), "zeroing");
  finish();
}

GpuRig::~GpuRig() {
  finish();
  device_.reset();
  for (const CudaAddress memory : allocated_) expect_success(driver_.memory_free(memory), "freeing");
  expect_success(driver_.memory_free(wrong_), "freeing");
  for (const CudaStream stream : streams_) expect_success(api_->stream_destroy(stream), "destroying a stream");
  expect_success(driver_.module_unload(module_), "unloading the kernels");
}

StreamId GpuRig::make_stream(const std::string&) {
  enter();
  CudaStream stream = nullptr;
  expect_success(api_->stream_create_with_priority(&stream, kCudaStreamNonBlocking, 0), "making a stream");
  const std::lock_guard lock(mutex_);
  streams_.push_back(stream);
  return StreamId{reinterpret_cast<uintptr_t>(stream)};
}

std::shared_ptr<std::byte> GpuRig::allocate(size_t bytes, StreamId stream) {
  enter();
  const std::lock_guard lock(mutex_);
  CudaAddress memory = 0;
  std::vector<CudaAddress>& free = free_[{stream, bytes}];
  if (!free.empty()) {
    memory = free.back();  // what the stream did with it before comes before what it does now
    free.pop_back();
  } else {
    expect_success(driver_.memory_allocate(&memory, bytes), "allocating");
    allocated_.push_back(memory);
  }
  return std::shared_ptr<std::byte>(reinterpret_cast<std::byte*>(memory), [this, bytes, stream](std::byte* freed) {
    const std::lock_guard in_free(mutex_);
    free_[{stream, bytes}].push_back(address(freed));
  });
}

std::shared_ptr<std::byte> GpuRig::host(size_t bytes) {
  return registered_memory(*device_, bytes);
}

void GpuRig::hold(StreamId stream, std::chrono::microseconds time) {
  auto nanoseconds = static_cast<uint64_t>(time.count()) * 1000;
  launch(spin_, stream, 1, {&nanoseconds});
}

void GpuRig::fill(StreamId stream, std::byte* data, size_t bytes, int value) {
  enter();
  expect_success(driver_.memset_async(address(data), static_cast<unsigned char>(value), bytes, handle(stream)),
                 "filling");
}

void GpuRig::write(StreamId stream, std::byte* data, size_t bytes, uint32_t seed) {
  CudaAddress to = address(data);
  auto words = static_cast<uint32_t>(bytes / 4);
  launch(write_, stream, words, {&to, &words, &seed});
}

void GpuRig::check(StreamId stream, const std::byte* data, size_t bytes, uint32_t seed) {
  CudaAddress from = address(data);
  auto words = static_cast<uint32_t>(bytes / 4);
  launch(check_, stream, words, {&from, &words, &seed, &wrong_});
}

uint32_t GpuRig::wrong() {
  finish();
  uint32_t wrong = 0;
  expect_success(driver_.memcpy_device_to_host(&wrong, wrong_, sizeof wrong), "reading the count");
  return wrong;
}

void GpuRig::finish() {
  enter();
  expect_success(driver_.context_synchronize(), "finishing");
}

void GpuRig::expect_clean() {
  finish();  // which says what went wrong on the device
  CudaContextHandle current = nullptr;
  expect_success(api_->context_get_current(&current), "asking for the context");
  EXPECT_EQ(current, context_);
}

void GpuRig::begin_capture(StreamId stream) {
  enter();
  expect_success(driver_.stream_begin_capture(handle(stream), CudaCaptureMode::kGlobal), "beginning a capture");
}

bool GpuRig::end_capture(StreamId stream) {
  enter();
  void* graph = nullptr;
  const CudaResult ended = driver_.stream_end_capture(handle(stream), &graph);
  EXPECT_EQ(static_cast<int>(ended), 0) << "the capture was broken";
  if (graph == nullptr) return false;
  expect_success(driver_.graph_destroy(graph), "destroying the graph");
  return ended == CudaResult::kSuccess;
}

void GpuRig::enter() {
  expect_success(api_->context_set_current(context_), "entering the context");
}

void GpuRig::launch(void* kernel, StreamId stream, unsigned threads, std::vector<void*> parameters) {
  enter();
  constexpr unsigned kBlock = 256;
  const unsigned block = std::min(threads, kBlock);
  expect_success(driver_.launch_kernel(kernel, (threads + block - 1) / block, 1, 1, block, 1, 1, 0, handle(stream),
                                       parameters.data(), nullptr),
                 "launching a kernel");
}

}  // namespace ebbtide::test
