// What the tests of the hooks share: a store's options, small functions to differentiate, results compared to the last
// bit.
#pragma once

#include <ebbtide/pinned_pool/bytes.h>
#include <ebbtide/store/options.h>
#include <ebbtide/store/stats.h>
#include <ebbtide/store/store.h>

#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/arange.h>
#include <gtest/gtest.h>
#include <tests/support/eventually.h>
#include <torch/csrc/autograd/autograd.h>

#include <stdlib.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace ebbtide::test {

inline constexpr int64_t kFloats = 4096;  ///< 16 KiB: more than the least that a store moves

/// Two threads that spin at every barrier make small models many times slower on a busy machine, and the threads of GNU
/// OpenMP do not survive a fork. That more threads change nothing is tested from Python.
class OneThread : public testing::Environment {
  void SetUp() override { at::set_num_threads(1); }
};
inline testing::Environment* const one_thread = testing::AddGlobalTestEnvironment(new OneThread);

/// A folder for spill files, which have no name in it. (Not std::filesystem: libtorch.so exports parts of another
/// compiler's, which crash.)
class Folder {
 public:
  Folder() {
    path_ = testing::TempDir() + "ebbtide-hooks-XXXXXX";
    if (::mkdtemp(path_.data()) == nullptr) throw std::runtime_error("mkdtemp: " + std::string(std::strerror(errno)));
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  ~Folder() { EXPECT_EQ(::rmdir(path_.c_str()), 0) << path_ << ": " << std::strerror(errno); }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

/// All that may move is held within `device_budget`; nothing leaves, since there is nowhere to go.
inline Options keeping(Bytes device_budget = GiB(1)) {
  Options options;
  options.device_budget = device_budget;
  options.min_bytes = KiB(4);
  return options;
}

/// What is over `device_budget` goes to the folder.
inline Options spilling(const Folder& folder, Bytes device_budget = Bytes(0)) {
  Options options = keeping(device_budget);
  options.spill_to = {folder.path()};
  options.host_budget = MiB(16);
  options.verify = true;
  return options;
}

/// A vector that wants a gradient; another for each seed.
inline at::Tensor leaf(int seed = 0, int64_t size = kFloats) {
  return ((at::arange(size, at::kFloat) + 97 * seed) * 0.37).sin_().requires_grad_(true);
}

/// A function whose nodes save inputs, outputs and products.
inline at::Tensor chain(const at::Tensor& x) {
  return ((x * 2).sin().exp().cos() * x.tanh()).sum();
}

inline at::Tensor gradient_of(const at::Tensor& y, const at::Tensor& x, bool retain_graph = false,
                              bool create_graph = false) {
  return torch::autograd::grad({y}, {x}, {}, retain_graph, create_graph).front();
}

inline std::string bytes_of(const at::Tensor& tensor) {
  const at::Tensor plain = tensor.detach().resolve_conj().resolve_neg().contiguous();
  return {static_cast<const char*>(plain.const_data_ptr()), plain.nbytes()};
}

/// Equal shape, dtype and bytes: NaN equals itself, and -0.0 is not 0.0.
inline bool same_bits(const at::Tensor& a, const at::Tensor& b) {
  return a.sizes() == b.sizes() && a.dtype() == b.dtype() && bytes_of(a) == bytes_of(b);
}

inline bool same_bits(const std::vector<at::Tensor>& a, const std::vector<at::Tensor>& b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i)
    if (!same_bits(a[i], b[i])) return false;
  return true;
}

/// What must hold when every graph made under the store is gone. A write that had begun when its record died ends by
/// itself, and only then is its extent free. A thread of the engine's that ran a node while another threw lets go of it
/// after the backward has returned.
inline void expect_all_is_over(const Store& store) {
  (void)eventually([&] {  // which of them is not over is said below
    const Stats stats = store.stats();
    return stats.spill.bytes + stats.device.bytes + stats.handed_over + stats.referenced_elsewhere == Bytes(0);
  });
  const Stats stats = store.stats();
  EXPECT_EQ(stats.packed.tensors, stats.passed_through.tensors + stats.deduplicated.tensors + stats.saved.tensors);
  EXPECT_EQ(stats.packed.bytes, stats.passed_through.bytes + stats.deduplicated.bytes + stats.saved.bytes);
  EXPECT_EQ(stats.saved.tensors,
            stats.kept.tensors + stats.offloaded.tensors + stats.spilled.tensors + stats.recomputed.tensors);
  EXPECT_EQ(stats.saved.bytes, stats.kept.bytes + stats.offloaded.bytes + stats.spilled.bytes + stats.recomputed.bytes);
  Count reasons;
  for (const auto& [reason, count] : stats.passed_through_reasons) {
    reasons.tensors += count.tensors;
    reasons.bytes += count.bytes;
  }
  EXPECT_EQ(reasons.tensors, stats.passed_through.tensors);
  EXPECT_EQ(reasons.bytes, stats.passed_through.bytes);
  EXPECT_EQ(stats.device.bytes, Bytes(0)) << "a record outlived its graph";
  EXPECT_EQ(stats.spill.bytes, Bytes(0)) << "an extent outlived its record";
  EXPECT_EQ(stats.handed_over, Bytes(0)) << "a tensor outlived its node";
  EXPECT_EQ(stats.referenced_elsewhere, Bytes(0));
}

}  // namespace ebbtide::test
