#include <ebbtide/hooks/torch_storage.h>

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

void drop_memory(void* context) {
  delete static_cast<std::shared_ptr<ReturnedMemory>*>(context);
}

}  // namespace

const void* identity(const c10::VariableVersion& version) noexcept {
  return counter_of(version);
}

TorchStorage::TorchStorage(c10::Storage storage, c10::VariableVersion version) noexcept
    : storage_(std::move(storage)), version_(std::move(version)), made_at_(version_.current_version()) {}

std::shared_ptr<TorchStorage> TorchStorage::over(const std::shared_ptr<ReturnedMemory>& memory) {
  auto context = std::make_unique<std::shared_ptr<ReturnedMemory>>(memory);
  at::DataPtr pointer(memory->data(), context.get(), drop_memory, c10::Device(c10::kCPU));
  (void)context.release();
  c10::Storage storage(c10::Storage::use_byte_size_t(), static_cast<size_t>(memory->bytes().count()),
                       std::move(pointer), /*allocator=*/nullptr,
                       /*resizable=*/false);
  memory->hand_over();
  return std::make_shared<TorchStorage>(std::move(storage), c10::VariableVersion(/*version=*/0));
}

std::byte* TorchStorage::data() const noexcept {
  return static_cast<std::byte*>(storage_.unsafeGetStorageImpl()->_mutable_data_ptr_no_checks().get());
}
Bytes TorchStorage::bytes() const noexcept {
  return Bytes(static_cast<int64_t>(storage_.nbytes()));
}
int64_t TorchStorage::references() const noexcept {
  return static_cast<int64_t>(storage_.use_count());
}
bool TorchStorage::unchanged() const noexcept {
  return version_.current_version() == made_at_;
}

}  // namespace ebbtide
