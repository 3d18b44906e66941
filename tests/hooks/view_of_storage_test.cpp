#include <ebbtide/hooks/view_of_storage.h>

#include <ATen/ops/complex.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/imag.h>
#include <ATen/ops/view_as_complex.h>
#include <ATen/ops/view_as_real.h>
#include <tests/hooks/support.h>

#include <cstring>
#include <string>

namespace ebbtide::test {
namespace {

at::Tensor numbers(at::IntArrayRef sizes) {
  return (at::arange(c10::multiply_integers(sizes), at::kFloat) * 0.37).sin().view(sizes);
}

struct Case {
  std::string name;
  at::Tensor tensor;
};

std::vector<Case> cases() {
  const at::Tensor base = numbers({4, 4, 16, 16});
  const at::Tensor wide = at::complex(base, base + 1);
  return {
      {"contiguous", base},
      {"transposed", base.transpose(0, 3)},
      {"every other", base.slice(0, 1, 4).slice(3, 3, 14, 2)},
      {"expanded", base.narrow(1, 2, 1).expand({4, 4, 16, 16})},
      {"channels last", base.contiguous(at::MemoryFormat::ChannelsLast)},
      {"one element", base.select(0, 3).select(0, 1).select(0, 5).select(0, 7)},
      {"overlapping", base.view(-1).unfold(0, 64, 16).narrow(0, 1, 8)},
      {"conjugate", wide.conj().narrow(0, 1, 2)},
      {"negative", at::imag(wide.conj()).narrow(0, 1, 2)},
      {"complex seen as real", at::view_as_real(wide).narrow(3, 3, 2)},
      {"real seen as complex", at::view_as_complex(base.view({-1, 2})).narrow(0, 3, 50)},
      {"float seen as bytes", base.view(at::kByte).narrow(3, 5, 9)},
      {"complex double", wide.to(at::kComplexDouble).view(-1).narrow(0, 1, 9)},
      {"half", base.to(at::kHalf).view(-1).narrow(0, 13, 100)},
  };
}

void expect_same_view(const at::Tensor& got, const at::Tensor& wanted) {
  EXPECT_EQ(got.sizes(), wanted.sizes());
  EXPECT_EQ(got.strides(), wanted.strides());
  EXPECT_EQ(got.dtype(), wanted.dtype());
  EXPECT_EQ(got.is_conj(), wanted.is_conj());
  EXPECT_EQ(got.is_neg(), wanted.is_neg());
  EXPECT_FALSE(got.requires_grad());
  EXPECT_TRUE(same_bits(got, wanted));
}

TEST(ViewOfStorageTest, IsTheSameViewOverTheOriginalStorage) {
  for (const auto& [name, tensor] : cases()) {
    SCOPED_TRACE(name);
    const c10::VariableVersion version(0);
    const at::Tensor got = ViewOfStorage(tensor).over(tensor.storage(), Bytes(0), version);
    expect_same_view(got, tensor);
    EXPECT_EQ(got.storage_offset(), tensor.storage_offset());
    EXPECT_EQ(got.const_data_ptr(), tensor.const_data_ptr());
    got.zero_();
    EXPECT_EQ(version.current_version(), 1u) << "an in-place write must be seen by whoever shares the counter";
  }
}

TEST(ViewOfStorageTest, IsTheSameViewOverACopyOfItsBytes) {
  for (const auto& [name, tensor] : cases()) {
    SCOPED_TRACE(name);
    const ViewOfStorage view(tensor);
    const int64_t bytes = view.end().count() - view.begin().count();
    ASSERT_GT(bytes, 0);
    ASSERT_LE(view.end().count(), static_cast<int64_t>(tensor.storage().nbytes()));
    const at::Tensor copy = at::empty({bytes}, at::kByte);
    std::memcpy(copy.mutable_data_ptr(), static_cast<const char*>(tensor.storage().data()) + view.begin().count(),
                static_cast<size_t>(bytes));
    expect_same_view(view.over(copy.storage(), view.begin(), c10::VariableVersion(0)), tensor);
  }
}

TEST(ViewOfStorageTest, TouchesItsFirstToItsLastByteAndStartsAlignedForEveryDtype) {
  const at::Tensor x = numbers({64, 16});
  const auto hull = [](const at::Tensor& tensor) {
    const ViewOfStorage view(tensor);
    return std::pair(view.begin().count(), view.end().count());
  };
  EXPECT_EQ(hull(x), std::pair(0L, 4096L));
  EXPECT_EQ(hull(x.slice(0, 2, 4)), std::pair(128L, 256L));
  EXPECT_EQ(hull(x.select(1, 15)), std::pair(48L, 4096L)) << "byte 60, rounded down to 16";
  EXPECT_EQ(hull(x.narrow(0, 1, 1).expand({64, 16})), std::pair(64L, 128L)) << "what is expanded is there once";
  EXPECT_EQ(hull(at::view_as_complex(x.view({-1, 2})).narrow(0, 1, 1)), std::pair(0L, 16L));
  EXPECT_EQ(hull(x.view(at::kByte).narrow(1, 21, 3).narrow(0, 0, 1)), std::pair(16L, 24L));
  EXPECT_EQ(hull(x.view(-1).select(0, 1023)), std::pair(4080L, 4096L));
}

/// Byte for byte: which of [begin, end) the view touches.
std::vector<bool> touched(const at::Tensor& tensor) {
  const ViewOfStorage view(tensor);
  std::vector<bool> bytes(static_cast<size_t>((view.end() - view.begin()).count()));
  const auto itemsize = static_cast<int64_t>(tensor.itemsize());
  std::vector<int64_t> index(static_cast<size_t>(tensor.dim()));
  for (int64_t i = 0; i < tensor.numel(); ++i) {
    int64_t rest = i, at = tensor.storage_offset();
    for (int64_t d = tensor.dim() - 1; d >= 0; --d) {
      at += rest % tensor.size(d) * tensor.stride(d);
      rest /= tensor.size(d);
    }
    for (int64_t byte = 0; byte < itemsize; ++byte)
      bytes[static_cast<size_t>(at * itemsize + byte - view.begin().count())] = true;
  }
  return bytes;
}
std::vector<bool> touched(const Rows& rows, size_t hull) {
  std::vector<bool> bytes(hull);
  for (int64_t row = 0; row < rows.count; ++row)
    for (int64_t byte = 0; byte < rows.row.count(); ++byte)
      bytes[static_cast<size_t>(row * rows.pitch.count() + byte)] = true;
  return bytes;
}

TEST(ViewOfStorageTest, RowsAreExactlyTheBytesOfTheView) {
  const at::Tensor qkv = numbers({2, 5, 3, 4, 8});  // batch, token, of q, k and v, head, channel
  const at::Tensor image = numbers({3, 8, 4, 4});
  const std::vector<Case> rows = {
      {"q of a fused qkv", qkv.select(2, 0)},
      {"v, heads before tokens", qkv.select(2, 2).transpose(1, 2)},
      {"half of a projection", numbers({6, 32}).chunk(2, 1)[1]},
      {"some channels", image.narrow(1, 4, 2)},
      {"a chunk of half precision", numbers({6, 32}).to(at::kHalf).chunk(2, 1)[1]},
      {"every other row", numbers({9, 8}).slice(0, 0, 9, 2)},
      {"a column", numbers({9, 8}).narrow(1, 4, 1)},
      {"expanded q", qkv.select(2, 0).unsqueeze(0).expand({7, 2, 5, 4, 8})},
      {"channels last, some channels", image.contiguous(at::MemoryFormat::ChannelsLast).narrow(1, 4, 4)},
      {"conjugate", at::complex(image, image).conj().narrow(1, 4, 2)},
  };
  for (const auto& [name, tensor] : rows) {
    SCOPED_TRACE(name);
    const ViewOfStorage view(tensor);
    const Rows got = view.rows();
    EXPECT_GT(got.count, 1);
    EXPECT_LT(got.row, got.pitch);
    EXPECT_EQ(got.pitch * (got.count - 1) + got.row, view.end() - view.begin());
    EXPECT_EQ(touched(got, touched(tensor).size()), touched(tensor));
  }
}

TEST(ViewOfStorageTest, KnowsTheAlignmentOfTheStorageThatItWasTakenFrom) {
  const at::Tensor x = numbers({64});
  EXPECT_EQ(ViewOfStorage(x).remainder(), 0u) << "torch's allocator";
  const at::Tensor part = at::from_blob(x.data_ptr<float>() + 4, {32}, at::kFloat);
  ViewOfStorage view(part);
  EXPECT_EQ(view.remainder(), 16u);
  view.shift(Bytes(16));
  EXPECT_EQ(view.remainder(), 0u) << "what came back began at 16";
}

TEST(ViewOfStorageTest, WhatIsNoRowsHasNone) {
  const at::Tensor x = numbers({4, 6, 8});
  const std::vector<Case> none = {
      {"all", x},
      {"transposed", x.transpose(0, 2)},
      {"a run", x.narrow(0, 1, 2)},
      {"one element", x.select(0, 1).select(0, 1).select(0, 4)},
      {"rows of rows", x.narrow(1, 1, 3).narrow(2, 4, 4)},
      {"overlapping", x.view(-1).unfold(0, 16, 4)},
      {"expanded run", x.narrow(0, 1, 1).expand({4, 6, 8})},
      {"not at a multiple of 16", x.view({24, 8}).narrow(1, 1, 4)},
  };
  for (const auto& [name, tensor] : none) {
    SCOPED_TRACE(name);
    EXPECT_TRUE(ViewOfStorage(tensor).rows().none());
  }
}

}  // namespace
}  // namespace ebbtide::test
