#include <ebbtide/hooks/accelerators.h>
#include <ebbtide/hooks/checkpoint_frame.h>
#include <ebbtide/hooks/error_translation.h>
#include <ebbtide/hooks/pass_through.h>
#include <ebbtide/hooks/recompute.h>
#include <ebbtide/hooks/redo_environment.h>
#include <ebbtide/hooks/region.h>
#include <ebbtide/store/error.h>

#include <ATen/SavedTensorHooks.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/engine.h>
#include <torch/csrc/autograd/graph_task.h>

#include <algorithm>
#include <sstream>
#include <string_view>
#include <typeinfo>
#include <unordered_map>
#include <utility>

namespace ebbtide {
namespace {

std::vector<c10::Device> devices_of(const std::vector<at::Tensor>& tensors) {
  std::vector<c10::Device> devices;
  for (const at::Tensor& tensor : tensors)
    if (tensor.defined() && !tensor.device().is_cpu() && !tensor.device().is_meta() &&
        std::ranges::find(devices, tensor.device()) == devices.end())
      devices.push_back(tensor.device());
  return devices;
}

uint64_t next_number() {
  static std::atomic<uint64_t> next{1};
  return next++;
}

/// The store's part of hooks that are its own.
const SavedTensor* saved_by_store(const torch::autograd::SavedVariableHooks* hooks) {
  if (const auto* of_region = dynamic_cast<const CheckpointedTensor*>(hooks)) return of_region->saved();
  return dynamic_cast<const SavedTensor*>(hooks);
}

/// Where the store would leave it alone, or take it apart, but a second run would free its memory.
bool worth_a_second_run(const at::Tensor& tensor, const Scope& scope) {
  if (is_parameter(tensor) || !tensor.grad_fn()) return false;
  return !is_plain(tensor) || (!tensor.device().is_cpu() && !scope.hooks().accelerators.serves(tensor.device().type()));
}

/// Whether `tensor` is what one of C++'s custom functions made. While it saves its results, it holds them and they hold it:
/// broken off there, the two would be left for ever.
bool made_by_custom_function(const at::Tensor& tensor) {
  const auto& node = tensor.grad_fn();
  return node && std::string_view(typeid(*node).name()).starts_with("N5torch8autograd7CppNodeI");
}

/// Makes the bytes of one record of a region, and of the others that are wanted with it.
class CheckpointRecipe final : public RunnableRecipe {
 public:
  CheckpointRecipe(const char* op, std::vector<std::shared_ptr<Record>> inputs, const at::Tensor& tensor,
                   std::shared_ptr<CheckpointFrame> frame)
      : RunnableRecipe(op, std::move(inputs), Bytes(0), Bytes(static_cast<int64_t>(tensor.storage().nbytes())),
                       Bytes(0)),
        frame_(std::move(frame)),
        workspace_(tensor.scalar_type() == at::kByte && !tensor.requires_grad()) {}

  bool inputs_unchanged() const noexcept override { return frame_->inputs_unchanged(); }
  bool cheap() const noexcept override { return false; }
  bool asked_for() const noexcept override { return true; }
  uint64_t group() const noexcept override { return frame_->number(); }
  bool to_the_last_byte() const noexcept override { return !workspace_; }
  std::shared_ptr<TorchStorage> make_again(Record& record, StreamId) const override {
    return frame_->make_again(record);
  }

 private:
  const std::shared_ptr<CheckpointFrame> frame_;
  const bool workspace_;
};

}  // namespace

Look::Look(const at::Tensor& tensor) : dtype(tensor.scalar_type()), device(tensor.device()) {
  has_sizes = !tensor.is_nested() && !tensor.unsafeGetTensorImpl()->has_symbolic_sizes_strides();
  if (has_sizes) sizes = tensor.sizes().vec();
}

std::string Look::text() const {
  std::ostringstream text;
  text << "{shape: ";
  has_sizes ? text << c10::IntArrayRef(sizes) : text << "unknown";
  text << ", dtype: " << dtype << ", device: " << device << "}";
  return text.str();
}

/// Under the hooks around the region.
CheckpointFrame::Input::Input(const at::Tensor& tensor) : requires_grad(tensor.requires_grad()) {
  if (at::SavedTensorDefaultHooks::is_enabled() && !tensor.unsafeGetTensorImpl()->is_wrapped_number())
    hooks = torch::autograd::Engine::get_default_engine().get_default_saved_variable_hooks();
  // What regions read is what they rest on: it has no recipe, and its bytes are somewhere.
  if (Scope* scope = Scope::current(); scope != nullptr && dynamic_cast<SavedTensor*>(hooks.get()) != nullptr)
    hooks = SavedTensor::make(*scope, SavedTensor::Recipes::kNone);
  const at::NoGradGuard no_grad;
  if (hooks) {
    hooks->call_pack_hook(tensor);
    return;
  }
  version.note(tensor);
  kept = tensor.is_leaf() ? tensor : tensor.detach();
}

/// A leaf, with the history that the function gives it alone.
at::Tensor CheckpointFrame::Input::value() const {
  at::Tensor tensor;
  if (const auto* saved = dynamic_cast<SavedTensor*>(hooks.get())) {
    tensor = const_cast<SavedTensor*>(saved)->unpack(StoreCore::AskedBy::kRedo);
  } else if (hooks) {
    tensor = hooks->call_unpack_hook();
  } else {
    if (!version.unchanged()) {
      std::ostringstream text;
      text << kept.toString() << " " << kept.sizes();
      version.raise(text.str());
    }
    tensor = kept;
  }
  if (tensor.is_leaf() && tensor.requires_grad() == requires_grad) return tensor;
  const at::NoGradGuard no_grad;
  return tensor.detach().requires_grad_(requires_grad);
}

CheckpointFrame::CheckpointFrame(const std::vector<at::Tensor>& inputs, Run again, std::shared_ptr<StoreCore> store,
                                 bool at_once)
    : number_(next_number()),
      again_(std::move(again)),
      store_(std::move(store)),
      label_(current_region()),
      surroundings_(devices_of(inputs)),
      store_may_run_it_(at_once) {
  std::unordered_map<const c10::TensorImpl*, size_t> known;  // functions may ask whether two arguments are one tensor
  for (const at::Tensor& tensor : inputs) {
    const auto [input, is_new] = known.try_emplace(tensor.unsafeGetTensorImpl(), inputs_.size());
    arguments_.push_back(input->second);
    if (!is_new) continue;
    inputs_.push_back(tensor.defined() ? std::make_unique<Input>(tensor) : nullptr);
    if (is_plain(tensor)) input_storages_.push_back(tensor.storage().unsafeGetStorageImpl());
    const SavedTensor* saved = tensor.defined() ? saved_by_store(inputs_.back()->hooks.get()) : nullptr;
    if (saved == nullptr) continue;
    saved_inputs_.push_back(saved);
    if (saved->record() && std::ranges::find(records_, saved->record()) == records_.end())
      records_.push_back(saved->record());
  }
  // What one region made and the next reads is stored: else the first of a row of regions would run again for the last.
  if (!store_ || HookSource::current() != nullptr) return;
  for (const auto& record : records_)
    if (&record->core() == store_.get()) store_->keep_from_redo(*record);
}

bool CheckpointFrame::inputs_unchanged() const noexcept {
  return store_may_run_it_ &&
         std::ranges::all_of(saved_inputs_, [](const SavedTensor* saved) { return saved->unchanged(); });
}

std::shared_ptr<CheckpointSlot> CheckpointFrame::pack(const at::Tensor& tensor) {
  auto slot = std::make_shared<CheckpointSlot>();
  slot->frame = shared_from_this();
  if (made_by_custom_function(tensor)) runs_to_its_end_ = true;
  Entry entry;
  entry.slot = slot;
  entry.look = Look(tensor);
  Scope* scope = Scope::current();
  if (store_ && scope != nullptr && scope->core() == store_ && store_->accepts_packs()) {
    if (worth_a_second_run(tensor, *scope)) {
      store_->note_passed_through("made again by its region", storage_footprint(tensor));
    } else {
      slot->saved = SavedTensor::make(*scope, SavedTensor::Recipes::kNone);
      slot->saved->call_pack_hook(tensor);
      if (slot->saved->record()) offer(tensor, *slot, entry);
    }
  }
  if (!slot->saved) {
    slot->version.note(tensor);
    slot->stays = is_parameter(tensor);
    if (slot->stays) slot->value = tensor;
  }
  const std::lock_guard lock(mutex_);
  slot->place = entries_.size();
  entries_.push_back(std::move(entry));
  return slot;
}

void CheckpointFrame::offer(const at::Tensor& tensor, CheckpointSlot& slot, Entry& entry) {
  const std::shared_ptr<Record>& record = slot.saved->record();
  entry.record = record;
  const auto* storage = tensor.storage().unsafeGetStorageImpl();
  if (std::ranges::find(input_storages_, storage) != input_storages_.end()) return;
  const ViewOfStorage view(tensor);
  if (!view.same_layout(slot.saved->operand().view)) return;  // memory that came back and is saved again
  entry.view = view;
  entry.storage_bytes = tensor.storage().nbytes();
  {
    const std::lock_guard lock(mutex_);
    if (!offered_.insert(record.get()).second) return;
  }
  const auto recipe = std::make_shared<CheckpointRecipe>(label_ != nullptr ? label_->redo.c_str() : "region", records_,
                                                         tensor, shared_from_this());
  entry.recipe = recipe;
  store_->offer_recipe(*record, recipe);
}

std::vector<std::pair<std::shared_ptr<Record>, std::shared_ptr<const Recipe>>> CheckpointFrame::offered() {
  std::vector<std::pair<std::shared_ptr<Record>, std::shared_ptr<const Recipe>>> alive;
  const std::lock_guard lock(mutex_);
  alive.reserve(entries_.size());
  for (const Entry& entry : entries_) alive.emplace_back(entry.record.lock(), entry.recipe.lock());
  return alive;
}

void CheckpointFrame::complete(double seconds, bool may_run_again) {
  complete_ = true;
  if (!store_) return;
  const auto alive = offered();
  Bytes all;
  for (const auto& [record, recipe] : alive)
    if (record && recipe) all += recipe->end();
  for (const auto& [record, recipe] : alive) {
    if (!record || !recipe) continue;
    if (!may_run_again)
      (void)store_->give_recipe_up(*record);
    else
      store_->note_recipe_takes(
          *record, *recipe, seconds * static_cast<double>(recipe->end().count()) / static_cast<double>(all.count()));
  }
  store_may_run_it_ = may_run_again;
}

at::Tensor CheckpointFrame::unpack(CheckpointSlot& slot) {
  const int task = torch::autograd::get_current_graph_task_id();
  if (slot.saved) {
    at::Tensor tensor = slot.saved->call_unpack_hook();
    std::shared_ptr<TorchStorage> held;  // let go of outside the lock
    const std::lock_guard lock(mutex_);
    slot.unpacked_in = task;
    held = std::move(slot.storage);
    return tensor;
  }
  if (!slot.version.unchanged()) {
    Look look;
    {
      const std::lock_guard lock(mutex_);
      look = entries_[slot.place].look;
    }
    std::ostringstream text;
    text << at::empty({0}, at::TensorOptions().dtype(look.dtype)).toString() << " " << c10::IntArrayRef(look.sizes);
    slot.version.raise(text.str());
  }
  // Where the graph is kept, so would be all that was made again; else it dies with its node.
  const bool lasts = slot.stays || (task != -1 && !torch::autograd::get_current_graph_task_keep_graph());
  {
    const std::lock_guard lock(mutex_);
    if (slot.value.defined()) {
      slot.unpacked_in = task;
      return lasts ? slot.value : std::exchange(slot.value, at::Tensor());
    }
  }
  at::Tensor value;
  for (const Made& made : recompute(&slot, nullptr))
    if (made.slot.get() == &slot) value = made.value;
  const std::lock_guard lock(mutex_);
  slot.unpacked_in = task;
  slot.value = lasts ? value : at::Tensor();
  return value;
}

std::shared_ptr<TorchStorage> CheckpointFrame::make_again(Record& record) {
  RedoTimer timer;
  const std::vector<Made> all = recompute(nullptr, &record);
  const double seconds = timer.stop();
  size_t bytes = 0;
  for (const Made& made : all)
    if (made.record) bytes += made.value.storage().nbytes();
  std::shared_ptr<TorchStorage> asked;
  std::unordered_map<const Record*, std::shared_ptr<TorchStorage>> made_now;
  const int task = torch::autograd::get_current_graph_task_id();
  for (const Made& made : all) {
    if (!made.record) continue;
    if (!made_now.contains(made.record.get())) {
      const c10::Storage& storage = made.value.storage();
      const double share = seconds * static_cast<double>(storage.nbytes()) / static_cast<double>(bytes);
      auto now = std::static_pointer_cast<TorchStorage>(
          store_->redone(*made.record, std::make_shared<TorchStorage>(storage), made.stream, share));
      if (made.record.get() == &record) asked = now;
      made_now.emplace(made.record.get(), std::move(now));
    }
    // Until it is asked for in this graph task: the budget may have no room for it.
    if (task == -1 || !made.slot) continue;
    const std::lock_guard lock(mutex_);
    if (made.slot->unpacked_in != task) made.slot->storage = made_now.at(made.record.get());
  }
  TORCH_INTERNAL_ASSERT(asked, "a region ran again without the tensor that was asked for");
  return asked;
}

/// Which of the tensors that were saved the function makes when it runs again now: that which is asked for, and, in a
/// graph task, all that is not there and was not asked for yet. Rather too much than to run again for each.
std::vector<bool> CheckpointFrame::wanted(const CheckpointSlot* asked_slot, const Record* asked_record, int task) {
  std::vector<std::shared_ptr<void>> alive;  // what may end with this call ends without the lock
  const std::lock_guard lock(mutex_);
  std::vector<bool> wanted(entries_.size());
  for (size_t place = 0; place < entries_.size(); ++place) {
    const Entry& entry = entries_[place];
    const auto slot = entry.slot.lock();
    const auto record = entry.record.lock();
    alive.insert(alive.end(), {slot, record});
    if (slot && !slot->saved) {
      wanted[place] = slot.get() == asked_slot ||
                      (task != -1 && !slot->value.defined() && slot->unpacked_in != task && slot->version.unchanged());
      continue;
    }
    if (!record || entry.storage_bytes == 0) continue;
    wanted[place] = record.get() == asked_record || (task != -1 && slot && slot->unpacked_in != task &&
                                                     slot->saved->unchanged() && store_->awaits_redo(*record));
  }
  return wanted;
}

std::vector<CheckpointFrame::Made> CheckpointFrame::recompute(const CheckpointSlot* slot, const Record* record) {
  const RedoEnvironment::Outside outside;
  const int task = torch::autograd::get_current_graph_task_id();
  watch(task);
  std::vector<bool> places = wanted(slot, record, task);
  std::vector<at::Tensor> inputs, arguments;
  inputs.reserve(inputs_.size());
  arguments.reserve(arguments_.size());
  for (const auto& input : inputs_) inputs.push_back(input ? input->value() : at::Tensor());
  for (const size_t input : arguments_) arguments.push_back(inputs[input]);
  inputs.clear();
  std::vector<Made> all;
  const Surroundings::Again again(surroundings_);
  Recompute run(*this, std::move(places));
  translated([&] { run.run(arguments); });
  const std::lock_guard lock(mutex_);
  for (size_t place = 0; place < run.values().size(); ++place) {
    const at::Tensor& value = run.values()[place];
    if (!value.defined()) continue;
    Made made{nullptr, entries_[place].slot.lock(), value, run.stream(place)};
    if (made.slot && !made.slot->saved) {
      if (task != -1 && made.slot.get() != slot) made.slot->value = value;
    } else {
      made.record = entries_[place].record.lock();
    }
    all.push_back(std::move(made));
  }
  return all;
}

/// When the graph task is over, however it ended, nothing that was made for it is held any more.
class CheckpointFrame::TaskEnd {
 public:
  explicit TaskEnd(std::weak_ptr<CheckpointFrame> frame) : frame_(std::move(frame)) {}
  ~TaskEnd() { note(); }
  TaskEnd(const TaskEnd&) = delete;
  TaskEnd& operator=(const TaskEnd&) = delete;
  void note() noexcept {
    if (const auto frame = std::exchange(frame_, {}).lock()) frame->let_go();
  }

 private:
  std::weak_ptr<CheckpointFrame> frame_;
};

void CheckpointFrame::watch(int task) {
  if (task == -1) return;
  {
    const std::lock_guard lock(mutex_);
    if (std::exchange(watched_, task) == task) return;
  }
  torch::autograd::Engine::get_default_engine().queue_callback(
      [end = std::make_shared<TaskEnd>(weak_from_this())] { end->note(); });
}

void CheckpointFrame::let_go() noexcept {
  std::vector<std::shared_ptr<CheckpointSlot>> slots;
  std::vector<at::Tensor> values;  // dropped outside the lock
  std::vector<std::shared_ptr<TorchStorage>> storages;
  const std::lock_guard lock(mutex_);
  watched_ = -1;
  for (const Entry& entry : entries_) {
    auto slot = entry.slot.lock();
    if (!slot) continue;
    if (!slot->stays) values.push_back(std::exchange(slot->value, at::Tensor()));
    storages.push_back(std::move(slot->storage));
    slots.push_back(std::move(slot));
  }
}

}  // namespace ebbtide
