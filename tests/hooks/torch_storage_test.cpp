#include <ebbtide/hooks/torch_storage.h>
#include <ebbtide/hooks/view_of_storage.h>
#include <ebbtide/store/returned_memory.h>
#include <ebbtide/store/store.h>
#include <ebbtide/store/store_core.h>

#include <ATen/ops/from_blob.h>
#include <tests/hooks/support.h>

#include <cstdint>
#include <memory>
#include <vector>

namespace ebbtide::test {
namespace {

const c10::VariableVersion& counter(const at::Tensor& tensor) {
  return tensor.unsafeGetTensorImpl()->version_counter();
}

TorchStorage storage_of(const at::Tensor& tensor) {
  return TorchStorage(tensor.storage());
}

std::shared_ptr<ReturnedMemory> memory(const Store& store, Bytes bytes, size_t remainder = 0) {
  return ReturnedMemory::make(store.core(), nullptr, bytes, 64, remainder, ReturnedMemory::From::kPoolOrSystem);
}

TEST(TorchStorageTest, CountsAllThatHoldTheStorage) {
  at::Tensor x = leaf().detach();
  const TorchStorage storage = storage_of(x);
  EXPECT_EQ(storage.data(), x.const_data_ptr());
  EXPECT_EQ(storage.bytes(), KiB(16));
  EXPECT_EQ(storage.references(), 2);
  at::Tensor view = x.narrow(0, 10, 20);
  EXPECT_EQ(storage.references(), 3);
  view.reset();
  x.reset();
  EXPECT_EQ(storage.references(), 1);
}

TEST(TorchStorageTest, IsKnownByItsStorage) {
  const at::Tensor x = leaf().detach();
  EXPECT_EQ(storage_of(x).identity(), storage_of(x.narrow(0, 1, 2)).identity());
  EXPECT_NE(storage_of(x).identity(), storage_of(x.clone()).identity());
}

TEST(TorchStorageTest, IsPlainWhereItsEndOnlyGivesMemoryBack) {
  EXPECT_TRUE(storage_of(leaf().detach()).plain());
  std::vector<float> numbers(kFloats);
  const at::Tensor with_a_deleter = at::from_blob(
      numbers.data(), {kFloats}, [](void*) {}, at::kFloat);
  EXPECT_FALSE(storage_of(with_a_deleter).plain()) << "the deleter is code of the user's";
  Store store(keeping());
  EXPECT_TRUE(TorchStorage::over(memory(store, KiB(16)))->plain());
}

TEST(TorchStorageTest, ACounterIsKnownByItself) {
  const at::Tensor x = leaf().detach();
  EXPECT_EQ(identity(counter(x)), identity(counter(x.detach())));
  EXPECT_EQ(identity(counter(x)), identity(counter(x.narrow(0, 1, 2))));
  EXPECT_NE(identity(counter(x)), identity(counter(x.variable_data())));
  EXPECT_NE(identity(counter(x)), identity(counter(x.clone())));
}

TEST(TorchStorageTest, OverReturnedMemoryKeepsItAliveAtItsAddress) {
  const ViewOfStorage view(leaf());
  at::Tensor tensor;
  const std::byte* address = nullptr;
  {
    Store store(keeping());
    for (const size_t remainder : {size_t{0}, size_t{16}, size_t{48}}) {
      auto returned = memory(store, KiB(16), remainder);
      address = returned->data();
      auto storage = TorchStorage::over(returned);
      returned.reset();
      EXPECT_EQ(storage->data(), address);
      EXPECT_EQ(reinterpret_cast<uintptr_t>(address) % 64, remainder);
      EXPECT_EQ(storage->references(), 1);
      tensor = view.over(storage->storage(), Bytes(0), c10::VariableVersion(0));
      EXPECT_FALSE(tensor.storage().resizable());
    }
  }
  EXPECT_EQ(tensor.const_data_ptr(), address) << "it outlives the store";
  tensor.fill_(3);
  EXPECT_EQ(tensor.sum().item<float>(), 3.0f * kFloats);
}

TEST(TorchStorageTest, WhatIsHandedOverIsCountedUntilItsLastTensorDies) {
  Store store(keeping());
  auto returned = memory(store, KiB(16));
  EXPECT_TRUE(store.stats().handed_over == Bytes(0));
  auto storage = TorchStorage::over(returned);
  returned.reset();
  EXPECT_TRUE(store.stats().handed_over == KiB(16));
  at::Tensor tensor = ViewOfStorage(leaf()).over(storage->storage(), Bytes(0), c10::VariableVersion(0));
  storage.reset();
  EXPECT_TRUE(store.stats().handed_over == KiB(16));
  tensor.reset();
  EXPECT_TRUE(store.stats().handed_over == Bytes(0));
}

}  // namespace
}  // namespace ebbtide::test
