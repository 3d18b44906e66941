#include <ebbtide/hooks/surroundings.h>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/autocast_mode.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <mutex>

namespace ebbtide {
namespace {

at::Tensor state_of(const at::Generator& generator) {
  at::Generator same = generator;
  const std::lock_guard lock(same.mutex());
  return same.get_state();
}

}  // namespace

Surroundings::Surroundings(std::span<const c10::Device> devices) : Surroundings(std::vector<Drawn>()) {
  const auto add = [&](const at::Generator& generator) {
    const auto same = [&](const Drawn& drawn) { return drawn.generator == generator; };
    if (std::ranges::none_of(generators_, same)) generators_.push_back({generator, state_of(generator)});
  };
  add(at::detail::getDefaultCPUGenerator());
  for (const c10::Device device : devices) {
    try {
      add(at::globalContext().defaultGenerator(device));
    } catch (const c10::Error&) {
      // A device without one, or one that a graph capture keeps to itself.
    }
  }
}

Surroundings::Surroundings(const std::vector<Drawn>& generators)
    : caches_casts_(at::autocast::is_autocast_cache_enabled()) {
  for (const Drawn& drawn : generators) generators_.push_back({drawn.generator, state_of(drawn.generator)});
  for (const c10::DeviceType device : at::autocast::_AUTOCAST_SUPPORTED_DEVICES)
    casts_.push_back({device, at::autocast::is_autocast_enabled(device), at::autocast::get_autocast_dtype(device)});
}

void Surroundings::set() const {
  for (const Drawn& drawn : generators_) {
    at::Generator generator = drawn.generator;
    const std::lock_guard lock(generator.mutex());
    generator.set_state(drawn.state);
  }
  for (const Cast& cast : casts_) {
    at::autocast::set_autocast_enabled(cast.device, cast.enabled);
    at::autocast::set_autocast_dtype(cast.device, cast.dtype);
  }
  at::autocast::set_autocast_cache_enabled(caches_casts_);
  arithmetic_.set();
}

/// Casts are cached for one autocast context, and what is cached here must not outlive the redo: weights change after it.
Surroundings::Again::Again(const Surroundings& surroundings) : before_(surroundings.generators_) {
  at::autocast::increment_nesting();
  surroundings.set();
}

Surroundings::Again::~Again() {
  if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
  before_.set();
}

}  // namespace ebbtide
