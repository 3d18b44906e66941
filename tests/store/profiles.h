// Passes for planners to plan: transformers as a GPU sees them, and random ones of every kind.
#pragma once

#include <ebbtide/store/machine.h>
#include <ebbtide/store/profile.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <random>
#include <utility>
#include <vector>

namespace ebbtide::test {

/// Speeds in flop, bytes of memory and bytes of link a second.
struct Accelerator {
  double flops = 6e14;
  double memory = 4e12;
  double link = 55e9;
  double duplex = 45e9;

  Machine machine() const { return {.link = LinkModel{{link, duplex}, {link, duplex}, 1e-5}, .disk = {}}; }
};

/// What a transformer's forward and backward save and ask for, of which `sigma` disturbs every size, cost and time:
/// the deviation of their logarithm. 12 records a layer.
struct Transformer {
  int layers = 32;
  double width = 4096;
  double tokens = 4096;
  double sigma = 0;
  uint64_t seed = 1;
  Accelerator accelerator;

  Profile profile() const;
};

inline Profile Transformer::profile() const {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal(0, sigma > 0 ? sigma : 1);
  const auto disturbed = [&](double value) { return sigma > 0 ? value * std::exp(normal(random)) : value; };
  const double unit = tokens * width * 2;  // bytes of one bf16 activation
  const double wide = unit * 2.6875;
  const double pointwise = 2 / accelerator.memory;  // seconds a byte made
  const double matmul = width / accelerator.flops;
  struct Made {
    const char* op;
    double bytes, seconds_a_byte;
    bool recipe;
    std::vector<uint32_t> inputs;  // by place in the layer
  };
  const std::vector<Made> layer = {
      {"residual", unit, width * 2.6875 / accelerator.flops, false, {}},
      {"norm", unit, pointwise, true, {0}},
      {"q", unit, matmul, true, {1}},
      {"k", unit, matmul, true, {1}},
      {"v", unit, matmul, true, {1}},
      {"rotated q", unit, pointwise, true, {2}},
      {"rotated k", unit, pointwise, true, {3}},
      {"attention", unit, (width + tokens) / accelerator.flops, true, {4, 5, 6}},
      {"norm 2", unit, pointwise, true, {0}},
      {"gate", wide, matmul, true, {8}},
      {"up", wide, matmul, true, {8}},
      {"product", wide, pointwise, true, {9, 10}},
  };
  Profile profile;
  std::vector<double> took;
  double now = 0;
  for (int l = 0; l < layers; ++l) {
    const auto first = static_cast<uint32_t>(profile.records.size());
    for (const Made& made : layer) {
      const Bytes bytes(static_cast<int64_t>(disturbed(made.bytes)) / 512 * 512 + 512);
      const double seconds = disturbed(made.bytes * made.seconds_a_byte);
      ProfiledRecord record{.bytes = bytes, .moved = bytes, .op = made.op};
      if (made.recipe) {
        record.recipe = ProfiledRecipe{seconds, {}};
        for (const uint32_t input : made.inputs) record.recipe->inputs.push_back(first + input);
      }
      profile.steps.push_back({ProfiledStep::What::kPack, static_cast<uint32_t>(profile.records.size()), now});
      profile.records.push_back(std::move(record));
      took.push_back(disturbed(made.bytes * made.seconds_a_byte));
      now += took.back();
    }
  }
  for (auto i = static_cast<uint32_t>(profile.records.size()); i-- > 0;) {
    profile.steps.push_back({ProfiledStep::What::kUnpack, i, now});
    now += 2 * took[i];
    profile.steps.push_back({ProfiledStep::What::kDeath, i, now});
  }
  profile.seconds = now;
  return profile;
}

inline Bytes saved(const Profile& profile) {
  Bytes sum;
  for (const ProfiledRecord& record : profile.records) sum += record.bytes;
  return sum;
}

/// Anything that may happen: rows, records that stay or are someone else's, recipes on recipes, records that are asked
/// for several times, in any order, or never, that die late or in the forward.
inline Profile random_profile(std::mt19937_64& random, uint32_t records) {
  const auto chance = [&](double p) { return std::uniform_real_distribution<>(0, 1)(random) < p; };
  const auto between = [&](double low, double high) { return std::uniform_real_distribution<>(low, high)(random); };
  Profile profile;
  double now = 0;
  std::vector<uint32_t> alive;
  const double speed = std::exp(between(-2, 2));  // seconds of redo a byte, about
  for (uint32_t i = 0; i < records; ++i) {
    const auto bytes = static_cast<int64_t>(between(1, 200));
    ProfiledRecord record{.bytes = Bytes(bytes), .moved = Bytes(chance(0.1) ? bytes / 2 : bytes)};
    if (chance(0.05))
      record.mobility = Mobility::kElsewhere;
    else if (chance(0.03))
      record.mobility = Mobility::kStays;
    if (chance(0.6)) {
      record.recipe = ProfiledRecipe{static_cast<double>(bytes) * 0.01 * speed * between(0.1, 2), {}};
      for (uint32_t input = i; input-- > 0 && record.recipe->inputs.size() < 3;)
        if (chance(0.4)) record.recipe->inputs.push_back(input);
    }
    profile.records.push_back(std::move(record));
    profile.steps.push_back({ProfiledStep::What::kPack, i, now});
    now += between(0, 2);
    if (chance(0.03)) {
      profile.steps.push_back({ProfiledStep::What::kDeath, i, now});
    } else {
      alive.push_back(i);
    }
  }
  std::ranges::reverse(alive);
  if (chance(0.2))
    for (size_t i = 1; i < alive.size(); ++i)
      if (chance(0.3)) std::swap(alive[i - 1], alive[i]);
  std::vector<uint32_t> late;
  for (const uint32_t record : alive) {
    if (chance(0.05)) continue;  // never asked for, alive to the end
    for (int again = chance(0.1) ? 2 : 1; again > 0; --again)
      profile.steps.push_back({ProfiledStep::What::kUnpack, record, now});
    now += between(0, 4);
    if (chance(0.1))
      late.push_back(record);
    else
      profile.steps.push_back({ProfiledStep::What::kDeath, record, now});
  }
  for (const uint32_t record : late) profile.steps.push_back({ProfiledStep::What::kDeath, record, now});
  profile.seconds = now;
  return profile;
}

/// Some of the records that have recipes are made by one run each with those before them.
inline Profile with_groups(Profile profile, std::mt19937_64& random) {
  const ProfiledRecipe* first = nullptr;
  uint32_t group = 0;
  for (uint32_t i = 0; i < profile.records.size(); ++i) {
    auto& recipe = profile.records[i].recipe;
    if (!recipe) continue;
    if (first == nullptr || random() % 3 == 0) {
      first = &*recipe;
      group = i;
    }
    recipe->inputs = first->inputs;
    recipe->group = group;
  }
  return profile;
}

/// A link, a disk, or both, of speeds that random_profile() keeps busy.
inline Machine random_machine(std::mt19937_64& random) {
  const auto speed = [&] { return 100 * std::exp(std::uniform_real_distribution<>(-2, 2)(random)); };
  Machine machine;
  const uint64_t kind = random() % 8;
  if (kind > 1) {
    const double out = speed(), in = random() % 2 ? out : speed();
    machine.link = LinkModel{{out, out * 0.8}, {in, in * 0.8}, random() % 2 ? 0.0 : 0.05};
  }
  if (kind < 4) {
    machine.disk = DiskModel{speed(), speed(), random() % 2 ? 0.0 : 0.05};
    if (kind == 0) machine.disk->compute_s_per_byte = 0.1 / machine.disk->write;
  }
  return machine;
}

inline Machine faster(Machine machine, double factor) {
  if (machine.link)
    for (LaneSpeed* speed : {&machine.link->out, &machine.link->in}) speed->alone *= factor, speed->duplex *= factor;
  if (machine.disk) machine.disk->write *= factor, machine.disk->read *= factor;
  return machine;
}

}  // namespace ebbtide::test
