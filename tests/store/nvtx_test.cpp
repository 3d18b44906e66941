// The ranges that a tool of NVIDIA's sees. A program of its own: NVTX looks for a tool once a process.
#include <dlfcn.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include "tests/support/noop_training.h"

namespace ebbtide::test {
namespace {

TEST(Nvtx, AToolSeesWhatLeavesAndComesBack) {
  ASSERT_EQ(::setenv("NVTX_INJECTION64_PATH", EBBTIDE_NVTX_LISTENER, 1), 0);
  constexpr int kTensors = 5;
  NoopTraining training(kTensors);
  training.forward();
  training.backward();
  void* const listener = ::dlopen(EBBTIDE_NVTX_LISTENER, RTLD_NOW | RTLD_NOLOAD);
  ASSERT_NE(listener, nullptr) << "NVTX did not load it";
  const auto ranges = reinterpret_cast<int (*)(const char*)>(::dlsym(listener, "nvtx_listener_ranges"));
  ASSERT_NE(ranges, nullptr);
  for (const char* const name : {"pack", "leave", "return", "unpack"})
    EXPECT_EQ(ranges((std::string("ebbtide: ") + name + " 1048576").c_str()), kTensors) << name;
}

}  // namespace
}  // namespace ebbtide::test
