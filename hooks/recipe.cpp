#include <ebbtide/hooks/accelerators.h>
#include <ebbtide/hooks/recipe.h>
#include <ebbtide/hooks/redo_cache.h>
#include <ebbtide/hooks/redo_environment.h>
#include <ebbtide/store/error.h>
#include <ebbtide/store/store_core.h>

#include <c10/util/Exception.h>
#include <torch/csrc/autograd/function.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <string>
#include <utility>

namespace ebbtide {
namespace {

void for_each_operand(const Step& step, const std::function<void(const Operand&)>& visit) {
  for (const Operand& operand : step.operands) {
    visit(operand);
    if (operand.step) for_each_operand(*operand.step, visit);
  }
}

std::vector<std::shared_ptr<Record>> records_of(const Step& step) {
  std::vector<std::shared_ptr<Record>> records;
  for_each_operand(step, [&](const Operand& operand) {
    if (operand.record && std::ranges::find(records, operand.record) == records.end())
      records.push_back(operand.record);
  });
  return records;
}

/// A storage that was made smaller (FSDP2 frees parameters so) must not be read.
bool readable(const Operand& operand) noexcept {
  return !operand.parameter || operand.parameter.nbytes() >= static_cast<size_t>(operand.view.end().count());
}

bool unchanged(const Operand& operand) noexcept {
  return !operand.version.enabled() ||
         (operand.version.current_version() == operand.saved_version && readable(operand));
}

bool any_costly(const Step& step) {
  return step.costly || std::ranges::any_of(step.operands, [](const Operand& operand) {
           return operand.step && any_costly(*operand.step);
         });
}

Bytes copies_in(const Step& step) {
  Bytes bytes;
  for (const Operand& operand : step.operands) {
    if (operand.copy.defined()) bytes += Bytes(static_cast<int64_t>(operand.copy.nbytes()));
    if (operand.step) bytes += copies_in(*operand.step);
  }
  return bytes;
}

/// Of some cache lines: one, at no regular distance from its neighbours, of each of as many equal parts.
uint64_t sample_of(const c10::Storage& storage) {
  constexpr size_t kLine = 64, kParts = 48;
  const auto* const bytes = static_cast<const std::byte*>(storage.data());
  const size_t lines = storage.nbytes() / kLine, each = lines / kParts;
  if (each < 2) return XXH3_64bits(bytes, storage.nbytes());
  std::array<std::byte, kLine * kParts> taken;
  for (size_t part = 0; part < kParts; ++part) {
    const size_t line = part * each + part * 0x9e3779b97f4a7c15u % each;
    std::memcpy(&taken[part * kLine], bytes + line * kLine, kLine);
  }
  return XXH3_64bits(taken.data(), taken.size());
}

uint64_t fingerprint_of(const c10::Storage& storage, TorchRecipe::Fingerprint by) {
  return by == TorchRecipe::Fingerprint::kSample ? sample_of(storage) : XXH3_64bits(storage.data(), storage.nbytes());
}

at::Tensor run_step(const Step& step, RedoCache& cache) {
  std::vector<at::Tensor> values;
  values.reserve(step.operands.size());
  for (const Operand& operand : step.operands) values.push_back(value_of(operand, cache));
  return step.redo(values);
}

/// Seconds that this thread spent in redos that others asked for as their inputs, and waiting for these: counted once.
thread_local double spent_within = 0;

}  // namespace

TorchRecipe::TorchRecipe(Step step, const at::Tensor& result, Bytes origin, std::shared_ptr<RedoCache> cache)
    : RunnableRecipe(step.op, records_of(step), origin, origin + Bytes(static_cast<int64_t>(result.storage().nbytes())),
                     copies_in(step)),
      step_(std::move(step)),
      result_(result),
      cache_(std::move(cache)),
      cheap_(!any_costly(step_)) {}

bool TorchRecipe::inputs_unchanged() const noexcept {
  bool all = true;
  for_each_operand(step_, [&](const Operand& operand) { all &= unchanged(operand); });
  return all;
}

std::vector<const c10::StorageImpl*> TorchRecipe::parameters() const {
  std::vector<const c10::StorageImpl*> all;
  for_each_operand(step_, [&](const Operand& operand) {
    if (operand.parameter) all.push_back(operand.parameter.unsafeGetStorageImpl());
  });
  return all;
}

void TorchRecipe::expect(const c10::Storage& made, Fingerprint by) {
  expected_by_ = by;
  expected_ = fingerprint_of(made, by);
}

uint64_t TorchRecipe::fingerprint_of_parameters() const {
  uint64_t fingerprint = 0;
  for (const c10::StorageImpl* storage : parameters())
    fingerprint = XXH3_64bits_withSeed(storage->data(), storage->nbytes(), fingerprint);
  return fingerprint;
}

std::optional<bool> TorchRecipe::finds_parameters() const {
  if (!expected_parameters_) return std::nullopt;
  return inputs_unchanged() && fingerprint_of_parameters() == *expected_parameters_;
}

/// Records were unchanged when the bytes were let go of, and nobody else held them then: a backward wrote to what it
/// unpacked. Parameters are others' to write to at any time.
void TorchRecipe::check_inputs() const {
  for_each_operand(step_, [&](const Operand& operand) {
    if (unchanged(operand)) return;
    TORCH_CHECK(!operand.parameter, "ebbtide: the result of ", step_.op, " that a node saved was to be computed again ",
                "from a parameter of shape ", operand.view.sizes(), ", which was modified after the forward by ",
                "something else than an optimizer", readable(operand) ? "" : " (its storage was resized)",
                ": it is at version ", operand.version.current_version(), "; expected version ", operand.saved_version,
                " instead. Modify parameters after the backward, or open the store with recompute=False.");
    TORCH_CHECK(false, "ebbtide: a tensor that was saved for the backward was modified by an inplace operation in the ",
                "backward, and ", step_.op, " cannot be computed again from it. ",
                "Open the store with recompute=False for this model.");
  });
}

std::shared_ptr<TorchStorage> TorchRecipe::run() const {
  check_inputs();
  const RedoEnvironment environment(result_.device(), arithmetic_);
  const at::Tensor made = run_step(step_, *cache_);
  if (!ViewOfStorage(made).same_layout(result_) || made.storage().use_count() != 1)
    throw CorruptTensor(std::string("a saved tensor that ") + step_.op + " made came out in another layout this time");
  TORCH_CHECK(
      expected_by_ == Fingerprint::kNone || fingerprint_of(made.storage(), expected_by_) == expected_,
      "ebbtide: the result of ", step_.op, " that a node saved was computed again, and came out with other ",
      "bytes: it, a tensor that it is made from, or how torch computes, was modified in a way that torch does ",
      "not tell, such as a write through .data or .numpy(). Write to tensors through torch's own operators and ",
      "to parameters after the backward, or open the store with recompute=False.");
  return std::make_shared<TorchStorage>(made.storage());
}

std::shared_ptr<TorchStorage> TorchRecipe::make_again(Record& record, StreamId stream) const {
  RedoTimer timer;
  std::shared_ptr<DeviceStorage> made = run();
  return std::static_pointer_cast<TorchStorage>(record.core().redone(record, std::move(made), stream, timer.stop()));
}

RedoTimer::RedoTimer() : before_(std::exchange(spent_within, 0)), began_(std::chrono::steady_clock::now()) {}

double RedoTimer::stop() {
  if (seconds_ >= 0) return seconds_;
  const double all = std::chrono::duration<double>(std::chrono::steady_clock::now() - began_).count();
  seconds_ = std::max(0.0, all - spent_within);
  spent_within = before_ + all;
  return seconds_;
}

at::Tensor value_of(const Operand& operand, RedoCache& cache) {
  if (operand.step) {
    at::Tensor value = cache.find(operand.step->result);
    if (value.defined()) return value;
    value = run_step(*operand.step, cache);
    cache.keep(operand.step->result, value);
    return value;
  }
  if (operand.parameter) return operand.view.over(operand.parameter, Bytes(0), operand.version);
  if (!operand.record) return operand.copy;
  const StorageOfRecord found = storage_of(*operand.record, operand.view.device(), StoreCore::AskedBy::kRedo);
  at::Tensor value = operand.view.over(found.storage->storage(), found.origin, operand.version);
  if (found.made_again) cache.hold(value);
  return value;
}

StorageOfRecord storage_of(Record& record, c10::Device device, StoreCore::AskedBy by) {
  StoreCore& core = record.core();
  const StreamId stream = device.is_cpu() ? kHostStream : current_stream(device);
  StoreCore::Unpacked unpacked = core.unpack(record, stream, by);
  if (unpacked.burst) {
    const auto node = torch::autograd::get_current_node();
    core.note_burst(record, node ? node->name() : std::string());
  }
  spent_within += unpacked.waited_s;
  if (unpacked.recipe)
    return {static_cast<const RunnableRecipe&>(*unpacked.recipe).make_again(record, stream), unpacked.recipe->begin(),
            true};
  auto storage = std::move(unpacked.storage);
  if (!storage) storage = core.adopt(record, unpacked.memory, TorchStorage::over(unpacked.memory));
  auto found = std::static_pointer_cast<TorchStorage>(std::move(storage));
  if (unpacked.of_another_stream) note_current_stream(found->storage());
  return {std::move(found), unpacked.origin, false};
}

}  // namespace ebbtide
