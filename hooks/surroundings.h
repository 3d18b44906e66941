// What a region's function ran under, so that it runs under the same again.
#pragma once

#include <ebbtide/hooks/arithmetic.h>

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include <span>
#include <vector>

namespace ebbtide {

/// The default generators of the CPU and of other devices, autocast (what is on, with which dtype, whether casts are
/// cached), and the arithmetic.
///
/// Threads: taken on the thread that runs the function; used on any. Generators belong to the process: whoever draws from
/// one on another thread while the function runs again disturbs it, as with torch's own checkpoint.
class Surroundings {
 public:
  /// As they are now. `devices`: whose generators the function may draw from, beside the CPU's.
  explicit Surroundings(std::span<const c10::Device> devices);

  class Again;

 private:
  struct Drawn {
    at::Generator generator;
    at::Tensor state;
  };
  struct Cast {
    c10::DeviceType device;
    bool enabled;
    at::ScalarType dtype;
  };

  /// As they are now, with those generators.
  explicit Surroundings(const std::vector<Drawn>& generators);
  void set() const;

  std::vector<Drawn> generators_;
  std::vector<Cast> casts_;
  bool caches_casts_;
  Arithmetic arithmetic_;
};

/// All is as it was while this lives.
class Surroundings::Again {
 public:
  explicit Again(const Surroundings& surroundings);
  ~Again();
  Again(const Again&) = delete;
  Again& operator=(const Again&) = delete;

 private:
  const Surroundings before_;
};

}  // namespace ebbtide
