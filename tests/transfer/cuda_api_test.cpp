#include <ebbtide/transfer/cuda_api.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace ebbtide {
namespace {

TEST(CudaApi, IsNotLoadedForThePurpose) {
  const auto api = CudaApi::of_process();
  ASSERT_FALSE(api) << "nothing in this program loads CUDA";
  EXPECT_EQ(api.failure().code, FailureCode::kUnsupported);
  EXPECT_THAT(api.failure().message, testing::HasSubstr("libcuda.so.1"));
}

}  // namespace
}  // namespace ebbtide
