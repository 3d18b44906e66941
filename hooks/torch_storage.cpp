#include <ebbtide/hooks/torch_storage.h>

#include <c10/core/Allocator.h>

#include <atomic>
#include <utility>

namespace ebbtide {
namespace {

// torch has no accessor for it. An explicit instantiation may name a private member, and a change of the member fails
// to compile.
template <auto kMember>
struct CounterOf {
  friend const void* counter_of(const c10::VariableVersion& version) { return (version.*kMember).get(); }
};
template struct CounterOf<&c10::VariableVersion::version_counter_>;
const void* counter_of(const c10::VariableVersion& version);

std::atomic<bool> interpreter_ends{false};

class TorchStorageWatch final : public StorageWatch {
 public:
  explicit TorchStorageWatch(const c10::Storage& storage) : storage_(storage.getWeakStorageImpl()) {}
  bool alive() const noexcept override { return !storage_.expired(); }

 private:
  const c10::weak_intrusive_ptr<c10::StorageImpl> storage_;
};

void drop_memory(void* context) {
  delete static_cast<std::shared_ptr<ReturnedMemory>*>(context);
}

}  // namespace

const void* identity(const c10::VariableVersion& version) noexcept {
  return counter_of(version);
}

void leak_storages() {
  interpreter_ends = true;
}

TorchStorage::~TorchStorage() {
  if (interpreter_ends) (void)storage_.unsafeReleaseStorageImpl();
}

std::shared_ptr<TorchStorage> TorchStorage::over(const std::shared_ptr<ReturnedMemory>& memory) {
  auto context = std::make_unique<std::shared_ptr<ReturnedMemory>>(memory);
  at::DataPtr pointer(memory->data(), context.get(), drop_memory, c10::Device(c10::kCPU));
  (void)context.release();
  c10::Storage storage(c10::Storage::use_byte_size_t(), static_cast<size_t>(memory->bytes().count()),
                       std::move(pointer), /*allocator=*/nullptr,
                       /*resizable=*/false);
  memory->hand_over();
  return std::make_shared<TorchStorage>(std::move(storage));
}

std::byte* TorchStorage::data() const noexcept {
  return static_cast<std::byte*>(storage_.unsafeGetStorageImpl()->_mutable_data_ptr_no_checks().get());
}
Bytes TorchStorage::bytes() const noexcept {
  return Bytes(static_cast<int64_t>(storage_.nbytes()));
}
int64_t TorchStorage::references() const noexcept {
  // A storage that Python has looked at keeps its Python object, and that object holds the storage: nobody else does if
  // the object is torch's alone.
  const bool wrapper = storage_.unsafeGetStorageImpl()->pyobj_slot()->has_unique_reference();
  return static_cast<int64_t>(storage_.use_count()) - (wrapper ? 1 : 0);
}

std::unique_ptr<StorageWatch> TorchStorage::watch() const {
  return std::make_unique<TorchStorageWatch>(storage_);
}

bool TorchStorage::plain() const noexcept {
  const c10::StorageImpl& storage = *storage_.unsafeGetStorageImpl();
  return storage.device_type() == c10::kCPU && storage.pyobj_slot()->load_pyobj() == nullptr &&
         owns_plain_memory(storage);
}

bool TorchStorage::owns_plain_memory(const c10::StorageImpl& storage) noexcept {
  const c10::DeleterFnPtr deleter = const_cast<c10::StorageImpl&>(storage)._mutable_data_ptr_no_checks().get_deleter();
  return deleter == c10::GetAllocator(storage.device_type())->raw_deleter() || deleter == drop_memory;
}
}  // namespace ebbtide
