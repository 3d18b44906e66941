#include <ebbtide/hooks/collective_marks.h>
#include <ebbtide/hooks/pass_through.h>
#include <ebbtide/hooks/recipe_book.h>
#include <ebbtide/hooks/recipe_search.h>
#include <ebbtide/hooks/recipe_table.h>
#include <ebbtide/hooks/redo_environment.h>
#include <ebbtide/hooks/two_values.h>

#include <ATen/ops/aminmax.h>
#include <ATen/ops/any.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/ne.h>
#include <ATen/ops/stack.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <iterator>
#include <string_view>
#include <typeinfo>
#include <unordered_set>
#include <utility>

namespace ebbtide {
namespace {

/// Whether ops of torch's own lead from a view to its base. A Function of the program may have written to the base before
/// it returned the view, through a kernel that torch does not see.
bool same_values(const at::Tensor& view, const at::Tensor& base) {
  const auto made_by = base.grad_fn();
  const auto last = view.grad_fn();
  const torch::autograd::Node* node = last.get();
  for (int views = 0; made_by && node != nullptr && views < 16; ++views) {
    if (node == made_by.get()) return true;
    if (!std::string_view(typeid(*node).name()).starts_with("N5torch8autograd9generated") || node->num_outputs() == 0)
      return false;
    node = node->next_edge(0).function.get();
  }
  return false;
}

/// The op's result that fills the storage of what was packed (a matmul's operand is a view of it, nearly always);
/// undefined where there is none. An in-place op has overwritten what it read: version 0 alone is an op's result.
at::Tensor result_behind(const RecipeBook::Packed& packed) {
  if (packed.version != 0) return {};
  const at::Tensor result = packed.tensor.is_view() ? at::Tensor(packed.tensor._base()) : packed.tensor;
  if (!result.grad_fn() || result.output_nr() != 0 || !is_plain(result)) return {};
  if (result.is_complex() || result.is_conj() || result.is_neg()) return {};
  if (packed.tensor.is_view() && !same_values(packed.tensor, result)) return {};
  if (given_to_collective(result.storage())) return {};
  if (result.storage_offset() != 0 || !result.is_non_overlapping_and_dense() ||
      result.nbytes() != result.storage().nbytes())
    return {};
  return result;
}

/// Null where the device times nothing, or has no event now.
EventPtr timed_event(Device& device, StreamId stream) {
  Result<EventPtr> event = device.record_timed(stream);
  return event.ok() ? std::move(event).value() : nullptr;
}

/// The type of integers of this size.
at::ScalarType integer_of(size_t bytes) {
  return bytes == 1 ? at::kByte : bytes == 2 ? at::kShort : bytes == 4 ? at::kInt : at::kLong;
}

/// All that is in the storage, in a row.
at::Tensor all_of(const c10::Storage& storage, at::ScalarType dtype) {
  const auto count = static_cast<int64_t>(storage.nbytes() / c10::elementSize(dtype));
  return at::empty({0}, at::TensorOptions(storage.device()).dtype(dtype)).set_(storage, 0, {count});
}

}  // namespace

RecipeBook::RecipeBook(StoreCore& core, const ParameterRegistry& parameters)
    : parameters_(parameters), cache_(std::make_shared<RedoCache>(core)) {
  mark_what_collectives_are_given();
}

std::optional<Operand> RecipeBook::find(const ResultId& result) const {
  std::lock_guard lock(mutex_);
  const auto found = holders_.find(result);
  if (found == holders_.end()) return std::nullopt;
  const Holder& holder = found->second;
  if (holder.version.current_version() != 0) return std::nullopt;
  Operand operand{.record = holder.record.lock(), .view = holder.view, .version = holder.version};
  return operand.record ? std::optional(std::move(operand)) : std::nullopt;
}

/// REQUIRES: version 0, with a counter.
void RecipeBook::note(const Packed& packed) {
  // It may hold something else than its node made.
  if (given_to_collective(packed.tensor.storage())) return;
  const auto enter = [&](const at::Tensor& tensor, const ViewOfStorage& view) {
    if (const auto& node = tensor.grad_fn())
      holders_.insert_or_assign(ResultId::of(*node, tensor.output_nr()),
                                Holder{packed.record, view, tensor.unsafeGetTensorImpl()->version_counter()});
  };
  std::lock_guard lock(mutex_);
  enter(packed.tensor, packed.view);
  if (packed.tensor.is_view()) {
    const at::Tensor base(packed.tensor._base());
    ViewOfStorage whole(base);
    whole.shift(packed.origin);
    if (packed.view.begin() <= whole.begin() && whole.end() <= packed.view.end() && same_values(packed.tensor, base))
      enter(base, whole);
  }
  if (holders_.size() < prune_at_) return;
  std::erase_if(holders_, [](const auto& entry) { return entry.second.record.expired(); });
  prune_at_ = std::max(kLeastToPrune, 2 * holders_.size());
}

std::shared_ptr<const TorchRecipe> RecipeBook::packed(StoreCore& core, const Packed& packed,
                                                      StoreCore::RecipeWanted wanted) {
  if (packed.version == 0 && packed.tensor.unsafeGetTensorImpl()->version_counter().enabled()) note(packed);
  if (wanted == StoreCore::RecipeWanted::kNone) return nullptr;
  Found found = of_op(core, packed, wanted == StoreCore::RecipeWanted::kAny);
  if (!found.recipe) found.recipe = of_bits(packed);
  if (!found.recipe || found.on_trial) return std::move(found.recipe);
  core.offer_recipe(*packed.record, std::move(found.recipe));
  return nullptr;
}

RecipeBook::Found RecipeBook::of_op(StoreCore& core, const Packed& packed, bool costly) {
  const at::Tensor result = result_behind(packed);
  if (!result.defined()) return {};
  const auto node = result.grad_fn();
  const RecipeRow* row = recipe_row(*node);
  if (row == nullptr || row->is_view || (row->costly && !costly)) return {};
  const RedoEnvironment environment(result.device());
  RecipeSearch search(*this, result, costly);
  std::optional<Step> step;
  try {
    step = search.run();
  } catch (const std::exception&) {
    // What reads an operand may fail, and a forward must not for want of a recipe.
  }
  if (!step) return {};
  auto recipe = std::make_shared<TorchRecipe>(std::move(*step), result, packed.origin, cache_);
  const bool rests_on_parameters = !recipe->parameters().empty();
  // To compare a costly one each time would cost as much as the op: it is taken on trust, and tried out, as what rests
  // on parameters is.
  const bool taken_on_trust = !search.sound() && !recipe->cheap() && trust_.possible();
  if (judge(core, packed, result, *recipe, search.site(), !search.sound() && !taken_on_trust) != Verdict::kEqual)
    return {};
  // The sample is for writes that torch did not count, to the result before it was saved too: nothing tells of those.
  if (result.device().is_cpu())
    recipe->expect(result.storage(), rests_on_parameters || !recipe->cheap() ? TorchRecipe::Fingerprint::kAll
                                                                             : TorchRecipe::Fingerprint::kSample);
  if (rests_on_parameters) watch(packed, recipe);
  const bool on_trial = (rests_on_parameters || taken_on_trust) && !trust_.earned();
  // That a site gives the same bits again one of its ops shows; of the others the parameters alone may change.
  if (on_trial && result.device().is_cpu() && search.sound() && !first_on_trial(search.site()))
    recipe->expect_parameters();
  return {std::move(recipe), on_trial};
}

/// Of its site, in this step of an optimizer.
bool RecipeBook::first_on_trial(const std::string& site) {
  const int64_t step = trust_.now();
  std::lock_guard lock(mutex_);
  return std::exchange(sites_[site].tried_in, step) != step;
}

std::shared_ptr<TorchRecipe> RecipeBook::of_bits(const Packed& packed) const {
  const at::Tensor& tensor = packed.tensor;
  if (!tensor.device().is_cpu() || tensor.storage().nbytes() % tensor.element_size() != 0) return nullptr;
  // Torch's rrelu packs its noise before its kernel writes it, and tells no version. Written by now are an op's result,
  // a mask, and what an in-place op has filled, such as the noise of a dropout.
  if (!tensor.grad_fn() && tensor.scalar_type() != at::kBool && packed.version == 0) return nullptr;
  const RedoEnvironment environment(tensor.device());
  const at::Tensor all = all_of(tensor.storage(), tensor.scalar_type());
  std::optional<Step> step = as_bits(all);
  return step ? std::make_shared<TorchRecipe>(std::move(*step), all, packed.origin, cache_) : nullptr;
}

bool RecipeBook::may_read(const at::Tensor& parameter) const {
  return trust_.possible() && is_plain(parameter) && parameter.storage_offset() == 0 &&
         parameter.is_non_overlapping_and_dense() && parameter.nbytes() == parameter.storage().nbytes() &&
         parameters_.contains(*parameter.storage().unsafeGetStorageImpl());
}

void RecipeBook::watch(const Packed& packed, const std::shared_ptr<const TorchRecipe>& recipe) {
  std::lock_guard lock(mutex_);
  resting_.push_back({packed.record, recipe, packed.tensor.device()});
  if (resting_.size() < prune_resting_at_) return;
  std::erase_if(resting_, [](const Resting& resting) { return resting.recipe.expired(); });
  prune_resting_at_ = std::max(kLeastToPrune, 2 * resting_.size());
}

void RecipeBook::try_out(StoreCore& core, const TorchRecipe& recipe, const c10::Storage& kept, Bytes origin,
                         const std::shared_ptr<Device>& device, StreamId stream) {
  if (recipe.retired() || !trust_.possible()) return;
  const int64_t step = trust_.trial();
  try {
    if (const auto finds = recipe.finds_parameters()) {
      if (*finds) return (void)trust_.held(step);
      trust_.failed();
      return core.note_unequal_redo(recipe.op());
    }
    const auto made = recipe.run();
    if (!device) {  // it has compared
      trust_.held(step);
      return;
    }
    const RedoEnvironment environment(kept.device());
    const at::Tensor kept_bytes = all_of(kept, at::kByte);  // of the storage that was saved, what views touch
    const at::Tensor made_bytes =
        all_of(made->storage(), at::kByte).narrow(0, (origin - recipe.begin()).count(), kept_bytes.numel());
    if (auto pending = compare_on_device(device, stream, made_bytes, kept_bytes, kept_bytes)) {
      std::lock_guard lock(mutex_);
      trials_.push_back({step, std::move(*pending), recipe.op()});
    }  // else the step proves nothing
  } catch (const std::exception&) {
    trust_.failed();
    core.note_unequal_redo(recipe.op());
  }
}

/// Never waits.
void RecipeBook::look_at_trials(StoreCore& core) {
  std::vector<Trial> trials;
  {
    std::lock_guard lock(mutex_);
    trials.swap(trials_);
  }
  std::erase_if(trials, [&](const Trial& trial) {
    const Verdict verdict = trial.pending.look();
    if (verdict == Verdict::kEqual && trust_.held(trial.step)) core.learn_again();
    if (verdict == Verdict::kUnequal) {
      trust_.failed();
      core.note_unequal_redo(trial.op);
    }
    return verdict != Verdict::kNotYet;
  });
  std::lock_guard lock(mutex_);
  trials_.insert(trials_.end(), std::make_move_iterator(trials.begin()), std::make_move_iterator(trials.end()));
}

void RecipeBook::backward_ended(StoreCore& core) {
  cache_->clear();
  trust_.backward_ended();
  look_at_trials(core);
}

void RecipeBook::before_change(StoreCore& core, std::span<const at::Tensor> parameters) {
  std::unordered_set<const c10::StorageImpl*> changing;
  for (const at::Tensor& parameter : parameters)
    if (parameter.defined() && parameter.has_storage()) changing.insert(parameter.storage().unsafeGetStorageImpl());
  struct Affected {
    std::shared_ptr<Record> record;
    std::shared_ptr<const TorchRecipe> recipe;
    c10::Device device;
  };
  std::vector<Affected> affected;
  {
    std::lock_guard lock(mutex_);
    std::erase_if(resting_, [&](const Resting& resting) {
      auto recipe = resting.recipe.lock();
      auto record = resting.record.lock();
      if (!recipe || !record) return true;
      const auto read = recipe->parameters();
      if (std::ranges::none_of(read, [&](const auto* storage) { return changing.contains(storage); })) return false;
      affected.push_back({std::move(record), std::move(recipe), resting.device});
      return true;
    });
  }
  for (const auto& [record, recipe, device] : affected) {
    recipe->retire();
    if (!core.give_recipe_up(*record)) continue;
    (void)storage_of(*record, device, StoreCore::AskedBy::kRedo);
    core.let_leave(*record);
  }
}

/// `every_time`: that it was equal at this site before says nothing.
/// Nor does it say anything that a result of one or two values is equal: a gate that is zero at first makes zeros, which a
/// write that torch does not count may leave as they are, and which come out of ways to compute that differ elsewhere.
RecipeBook::Verdict RecipeBook::judge(StoreCore& core, const Packed& packed, const at::Tensor& result,
                                      TorchRecipe& recipe, const std::string& site, bool every_time) {
  const bool on_host = result.device().is_cpu();
  std::optional<Pending> pending;
  {
    std::lock_guard lock(mutex_);
    if (sites_.size() >= kMostSites) sites_.clear();  // shapes that never come back
    const Site& known = sites_[site];
    recipe.takes(known.seconds);
    if (known.verdict == Verdict::kUnequal || (every_time && !on_host)) return Verdict::kUnequal;
    if (known.verdict == Verdict::kEqual && !every_time) return Verdict::kEqual;
    pending = known.pending;
  }
  if (on_host && !every_time && as_bits(all_of(result.storage(), result.scalar_type()))) return Verdict::kNotYet;
  Verdict verdict = Verdict::kUnequal;
  std::optional<double> seconds;
  try {
    if (pending) {
      verdict = pending->look();
      if (verdict == Verdict::kNotYet) return verdict;
      seconds = pending->seconds();
      if (verdict == Verdict::kEqual && !pending->tells()) {
        std::lock_guard lock(mutex_);
        sites_[site].pending.reset();
        return Verdict::kNotYet;
      }
    } else {
      RedoTimer timer;
      const auto time = [&] { return on_host ? nullptr : timed_event(*packed.device, packed.stream); };
      EventPtr began = time();
      const auto made = recipe.run();
      EventPtr ended = time();
      if (on_host) seconds = timer.stop();
      const c10::Storage& saved = result.storage();
      const bool as_long = made->storage().nbytes() == saved.nbytes();
      if (as_long && !on_host) {
        auto asked = compare_on_device(packed.device, packed.stream, all_of(made->storage(), at::kByte),
                                       all_of(saved, at::kByte), all_of(saved, integer_of(result.element_size())));
        if (!asked) return Verdict::kNotYet;  // the next pack here asks anew
        asked->began = std::move(began);
        asked->ended = std::move(ended);
        std::lock_guard lock(mutex_);
        sites_[site].pending = std::move(asked);
        return Verdict::kNotYet;
      }
      if (as_long && std::memcmp(made->storage().data(), saved.data(), saved.nbytes()) == 0) verdict = Verdict::kEqual;
    }
  } catch (const std::exception&) {
    // What cannot be redone now is no recipe.
  }
  if (verdict == Verdict::kUnequal) core.note_unequal_redo(recipe.op());
  std::lock_guard lock(mutex_);
  Site& known = sites_[site];
  if (!every_time || verdict == Verdict::kUnequal) known.verdict = verdict;
  known.pending.reset();
  known.seconds = seconds;
  recipe.takes(seconds);
  return verdict;
}

/// Enqueued on `stream`, the answer's way to the host too: it is read once that has passed, and nobody waits. None where
/// the device has no event to give now.
std::optional<RecipeBook::Pending> RecipeBook::compare_on_device(const std::shared_ptr<Device>& device, StreamId stream,
                                                                 const at::Tensor& made, const at::Tensor& saved,
                                                                 const at::Tensor& values) {
  const auto [least, most] = at::aminmax(values);
  const at::Tensor third = at::any(at::ne(values, least).logical_and_(at::ne(values, most)));
  const at::Tensor answers = at::stack({at::any(at::ne(made, saved)), third});
  // A copy to memory that is not pinned would wait; only CUDA has torch pin memory.
  const at::Tensor on_host = at::empty({2}, at::TensorOptions().dtype(at::kBool).pinned_memory(answers.is_cuda()));
  on_host.copy_(answers, /*non_blocking=*/true);
  Result<EventPtr> compared = device->record(stream);
  if (!compared.ok()) return std::nullopt;
  return Pending{.answers = on_host, .device = device, .compared = std::move(compared).value()};
}

RecipeBook::Verdict RecipeBook::Pending::look() const {
  const Result<bool> passed = device->passed(compared);
  if (passed.ok() && !passed.value()) return Verdict::kNotYet;
  return passed.ok() && !answers.const_data_ptr<bool>()[0] ? Verdict::kEqual : Verdict::kUnequal;
}

std::optional<double> RecipeBook::Pending::seconds() const {
  if (!began || !ended) return std::nullopt;
  const Result<double> between = device->seconds_between(began, ended);
  return between.ok() ? std::optional(between.value()) : std::nullopt;
}

}  // namespace ebbtide
