#include <ebbtide/hooks/pass_through.h>

#include <ATen/MapAllocator.h>
#include <ATen/ops/_efficientzerotensor.h>
#include <ATen/ops/_lazy_clone.h>
#include <ATen/ops/_nested_tensor_from_tensor_list.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/from_file.h>
#include <ATen/ops/quantize_per_tensor.h>
#include <c10/core/InferenceMode.h>
#include <gmock/gmock.h>
#include <tests/hooks/support.h>

#include <unistd.h>

#include <string>

namespace ebbtide::test {
namespace {

using testing::StrEq;

const char* why(const at::Tensor& tensor, const ParameterRegistry& parameters = {}) {
  return why_pass_through(tensor, KiB(4), parameters, Accelerators());
}

/// A result of the size of a leaf, that nobody holds a gradient of.
at::Tensor result() {
  return leaf().detach() * 2;
}

TEST(PassThroughTest, ResultsAndTheirViewsMayMove) {
  EXPECT_EQ(why(result()), nullptr);
  EXPECT_EQ(why(leaf() * 2), nullptr);
  EXPECT_EQ(why((leaf() * 2).view({64, 64}).transpose(0, 1)), nullptr);
  EXPECT_EQ(why((leaf() * 2).narrow(0, 0, 4)), nullptr) << "the storage's size counts, not the view's";
  EXPECT_EQ(storage_footprint((leaf() * 2).narrow(0, 0, 4)), KiB(16));
}

TEST(PassThroughTest, ParametersAndTheirViews) {
  const at::Tensor weight = leaf();
  EXPECT_THAT(why(weight), StrEq("parameter or leaf"));
  EXPECT_THAT(why(weight.view({64, 64}).transpose(0, 1)), StrEq("parameter or leaf"));
  EXPECT_EQ(why(weight.detach()), nullptr) << "such a view has lost its base: that is what the registry is for";
  ParameterRegistry parameters;
  parameters.add(weight);
  EXPECT_THAT(why(weight.detach().narrow(0, 1, 9), parameters), StrEq("parameter or buffer of an attached model"));
}

TEST(PassThroughTest, SmallStorages) {
  const at::Tensor small = at::empty({1023}, at::kFloat);
  EXPECT_THAT(why(small), StrEq("under min_bytes"));
  EXPECT_EQ(storage_footprint(small), Bytes(4092));
  EXPECT_EQ(why(at::empty({1024}, at::kFloat)), nullptr);
}

TEST(PassThroughTest, NoElements) {
  EXPECT_THAT(why(at::empty({0, 8}, at::kFloat)), StrEq("no elements"));
  EXPECT_THAT(why(result().narrow(0, 5, 0)), StrEq("no elements"));
}

TEST(PassThroughTest, KindsWithoutAnOrdinaryStorage) {
  const at::Tensor x = result().view({64, 64});
  const auto expect = [](const at::Tensor& tensor, const char* reason) {
    EXPECT_THAT(why(tensor), StrEq(reason));
    EXPECT_EQ(storage_footprint(tensor), Bytes(0));
  };
  expect(x.to_sparse(), "not strided (sparse or mkldnn)");
  expect(x.to_sparse_csr(), "not strided (sparse or mkldnn)");
  if (x.unsafeGetTensorImpl()->has_storage()) expect(x.to_mkldnn(), "not strided (sparse or mkldnn)");
  expect(at::quantize_per_tensor(x, 0.1, 0, at::kQInt8), "quantised");
  expect(at::_nested_tensor_from_tensor_list({x, x.narrow(0, 0, 3)}), "nested");
  expect(at::empty({64, 64}, at::TensorOptions(at::kMeta).dtype(at::kFloat)), "meta tensor");
  expect(at::_efficientzerotensor({64, 64}, at::kFloat), "zero tensor");
#if __has_include(<ATen/core/Dimname.h>)  // torch's newest versions know no names
  expect(x.rename(std::vector<at::Dimname>{at::Dimname::wildcard(),
                                           at::Dimname::fromSymbol(at::Symbol::dimname("columns"))}),
         "named dimensions");
#endif
}

TEST(PassThroughTest, InferenceTensors) {
  at::Tensor x;
  {
    c10::InferenceMode mode;
    x = result();
  }
  EXPECT_THAT(why(x), StrEq("inference tensor"));
}

TEST(PassThroughTest, CopyOnWriteStorages) {
  const at::Tensor x = result();
  ASSERT_EQ(why(x), nullptr);
  at::Tensor lazy = at::_lazy_clone(x);
  EXPECT_THAT(why(lazy), StrEq("copy-on-write storage"));
  EXPECT_THAT(why(x), StrEq("copy-on-write storage")) << "its bytes are shared from now on";
  lazy.add_(1);
  EXPECT_EQ(why(lazy), nullptr) << "the write gave it bytes of its own";
}

TEST(PassThroughTest, MappedFiles) {
  const Folder folder;
  const std::string file = folder.path() + "/numbers";
  for (const bool shared : {true, false}) {
    const at::Tensor mapped = at::from_file(file, shared, kFloats, at::kFloat);
    EXPECT_THAT(why(mapped), StrEq("memory of another owner (shared, mapped, numpy)"));
    EXPECT_THAT(why(mapped.narrow(0, 1, 9)), StrEq("memory of another owner (shared, mapped, numpy)"));
  }
  ::unlink(file.c_str());
}

TEST(PassThroughTest, SharedMemory) {
  constexpr size_t kBytes = kFloats * sizeof(float);
  const int flags = at::ALLOCATOR_MAPPED_SHAREDMEM | at::ALLOCATOR_MAPPED_EXCLUSIVE;
  const auto over = [](at::DataPtr memory) {
    return at::empty({0}, at::kFloat)
        .set_(c10::Storage(c10::Storage::use_byte_size_t(), kBytes, std::move(memory)), 0, {kFloats}, {1});
  };
  const std::string name = "/ebbtide-" + std::to_string(::getpid());
  // As torch.multiprocessing makes it, by its strategies file_descriptor and file_system.
  EXPECT_THAT(
      why(over(at::MapAllocator::makeDataPtr(name + "-a", flags | at::ALLOCATOR_MAPPED_UNLINK, kBytes, nullptr))),
      StrEq("memory of another owner (shared, mapped, numpy)"));
  EXPECT_THAT(why(over(at::RefcountedMapAllocator::makeDataPtr((name + "-b").c_str(), flags, kBytes, nullptr))),
              StrEq("memory of another owner (shared, mapped, numpy)"));
}

TEST(PassThroughTest, StoragesThatWereFreedUnderTheirViews) {
  // As FSDP does with its unsharded parameters.
  const at::Tensor freed = result();
  freed.storage().unsafeGetStorageImpl()->set_nbytes(0);
  EXPECT_THAT(why(freed), StrEq("under min_bytes"));
  const at::Tensor cut = result();
  cut.storage().unsafeGetStorageImpl()->set_nbytes(KiB(8).count());
  EXPECT_THAT(why(cut), StrEq("storage smaller than its view"));
  EXPECT_EQ(why(cut.narrow(0, 0, 2048)), nullptr);
}

TEST(PassThroughTest, MemoryOfAnotherOwner) {
  std::vector<float> numbers(kFloats);
  EXPECT_THAT(why(at::from_blob(numbers.data(), {kFloats}, at::kFloat)),
              StrEq("memory of another owner (shared, mapped, numpy)"));
}

}  // namespace
}  // namespace ebbtide::test
