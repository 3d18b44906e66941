// The storages of a model's parameters and buffers, which never move.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/StorageImpl.h>
#include <c10/core/TensorImpl.h>
#include <c10/util/intrusive_ptr.h>
#include <torch/csrc/autograd/function.h>

#include <cstdint>

#include <atomic>
#include <mutex>
#include <optional>
#include <unordered_map>

namespace ebbtide {

/// Holds storages weakly: an address that was reused by another storage is not mistaken for a parameter's.
/// Threads: all methods from any.
class ParameterRegistry {
 public:
  void add(const at::Tensor& tensor);
  bool contains(const c10::StorageImpl& storage) const;

  /// `weight`, which was added, is a layer norm's: its module alone reads it, with this eps.
  void note_layer_norm(const at::Tensor& weight, double eps);
  /// None where nobody has said so.
  std::optional<double> layer_norm_eps(const at::Tensor& weight) const;

  /// Takes down at which versions they are: a forward begins on this thread.
  void take_down_versions();
  /// Whether the op of `node`, on the thread of the last take_down_versions(), read `parameter` as it is now: it was not
  /// written to since, and the op ran after that. (Torch counts no writes through .data.)
  bool unchanged_since(const torch::autograd::Node& node, const at::Tensor& parameter) const;

 private:
  struct Known {
    c10::weak_intrusive_ptr<c10::StorageImpl> storage;
    c10::VariableVersion version;
    uint32_t taken_down = 0;
    std::optional<double> eps;
  };
  static constexpr size_t kLeastToPrune = 1024;

  std::atomic<bool> empty_{true};
  mutable std::mutex mutex_;
  std::unordered_map<const c10::StorageImpl*, Known> storages_;
  uint64_t thread_ = 0;  // of the last take_down_versions()
  uint64_t sequence_ = 0;
  size_t prune_at_ = kLeastToPrune;
};

}  // namespace ebbtide
