// What the tests of accelerators share: two pretend ones with a store, and programs that are compared with plain runs.
#pragma once

#include <ebbtide/hooks/offload_scope.h>
#include <ebbtide/store/options.h>
#include <ebbtide/store/stats.h>
#include <ebbtide/store/store.h>

#include <ATen/core/Tensor.h>
#include <c10/core/Stream.h>
#include <tests/hooks/support.h>
#include <tests/support/late_device.h>
#include <tests/support/mutant_device.h>
#include <tests/support/sim_accelerator/sim_accelerator.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace ebbtide::test {

struct Subject;
using Tensors = std::vector<at::Tensor>;

inline constexpr c10::DeviceIndex kDevices = SimAccelerator::kDevices;

inline c10::Stream default_stream(c10::DeviceIndex index = 0) {
  return c10::Stream(c10::Stream::DEFAULT, SimAccelerator::device(index));
}

/// What follows on `later` comes after what is enqueued on `earlier`.
void order(c10::Stream earlier, c10::Stream later);

/// Two pretend accelerators, and a store that serves their tensors.
class Machine {
 public:
  explicit Machine(const Options& options, SimOptions sim = {},
                   MutantDevice::Mutation mutation = MutantDevice::Mutation::kNone);
  /// REQUIRES: all graphs and all device tensors of the test are gone.
  ~Machine();
  Machine(const Machine&) = delete;
  Machine& operator=(const Machine&) = delete;

  SimAccelerator& sim() { return sim_; }
  Store& store() { return *store_; }
  /// Of the first accelerator that was used.
  DeviceStats tier() const { return store_->stats().devices.at(1); }

 private:
  SimAccelerator sim_;
  const bool mutant_;
  std::vector<std::shared_ptr<LateDevice>> late_;
  std::optional<Store> store_;
};

/// A model and its input on one device; `times` its usual batch.
Subject build_on_device(const std::string& name, int64_t times = 1, c10::DeviceIndex index = 0);

Tensors to_cpu(const Tensors& tensors);

/// Losses, gradients and buffers of a few steps of SGD, the forward under the store if there is one. Nothing makes the
/// host wait before the end.
Tensors train(const std::string& name, Store* store, int64_t times = 1, int steps = 2);

/// The same of a run without a store, on an accelerator.
const Tensors& plain(const std::string& name, int64_t times = 1);

/// The largest tensor that one of the models saves, at its usual batch.
Bytes largest_saved(const std::string& name);

/// How many seeds a test tries.
uint64_t seeds(uint64_t usual);

/// What is over the budget goes to host memory, and no further.
Options to_host(Bytes device_budget);

/// Host memory holds little, so most goes on to disk.
Options to_disk(const Folder& folder, Bytes device_budget);

at::Tensor device_leaf(int seed = 0, c10::DeviceIndex index = 0);

/// The loss of `forward`, under the store if there is one.
at::Tensor under(Store* store, const std::function<at::Tensor()>& forward);

/// Runs `body` without a store, then with one on each of a few seeds and budgets, and compares what it returns.
void expect_same_as_plain(const std::function<Tensors(SimAccelerator&, Store*)>& body,
                          const std::vector<Bytes>& budgets = {Bytes(0), KiB(40)});

}  // namespace ebbtide::test
