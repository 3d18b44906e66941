// The tiers of a store: how they are opened, and what they hold.
#include <ebbtide/nvme/drive_wear.h>
#include <ebbtide/pinned_pool/capacity.h>
#include <ebbtide/pinned_pool/near_node.h>
#include <ebbtide/store/automatic_budgets.h>
#include <ebbtide/store/device_registrar.h>
#include <ebbtide/store/error.h>
#include <ebbtide/store/op_name.h>
#include <ebbtide/store/store_core.h>
#include <ebbtide/transfer/host_device.h>
#include <ebbtide/transfer/resident_set.h>

#include <algorithm>
#include <utility>

namespace ebbtide {
namespace {

constexpr Bytes kDefaultMinBytes = KiB(64);
constexpr Bytes kDefaultMinBytesOfDevices = MiB(1);
/// One huge page. With less staging nothing is prefetched, and what is demanded comes back into memory of the system's.
constexpr Bytes kLeastPool = MiB(2);

/// What comes back lies in staging memory and counts in the device budget, so more than that is never live; a quarter
/// for the pool's rounding. What a fast disk needs in flight is far less than a GiB.
Bytes default_staging(Bytes device_budget) {
  return std::clamp(device_budget + device_budget / 4, MiB(64), GiB(1));
}

/// Errors: ConfigError.
void check_node(const Topology* topology, NumaNode node) {
  const std::string wrong = "numa=" + std::to_string(static_cast<int>(node)) + ": ";
  if (topology == nullptr) throw ConfigError(wrong + "hwloc cannot read this machine's topology");
  const std::vector<NumaNode>& nodes = topology->nodes();
  if (std::find(nodes.begin(), nodes.end(), node) != nodes.end()) return;
  std::string known;
  for (const NumaNode other : nodes) known.append(" ").append(std::to_string(static_cast<int>(other)));
  throw ConfigError(wrong +
                    "there is no such NUMA node with memory and cores that this process may use; there are:" + known);
}

/// As WearStats says. `seconds`: in which it was written.
WearStats wear_of(Bytes written, int64_t passes, double seconds, std::optional<Bytes> endurance) {
  constexpr double kDay = 24 * 60 * 60;
  const auto bytes = static_cast<double>(written.count());
  if (bytes == 0 || seconds <= 0) return {};
  const double a_day = bytes / seconds * kDay;
  return {Bytes(written.count() / std::max<int64_t>(passes, 1)), Bytes(static_cast<int64_t>(a_day)),
          endurance ? static_cast<double>(endurance->count()) / a_day : 0};
}

Options with_endurance(Options options) {
  if (!options.spill_endurance) options.spill_endurance = nvme::endurance_left(options.spill_to);
  return options;
}

}  // namespace

StoreCore::StoreCore(Options options, std::shared_ptr<const Topology> machine)
    : options_(std::move(options)),
      topology_(std::move(machine)),
      host_(tiers_.emplace_back(std::make_shared<HostDevice>(), size_t{0})),
      planner_(options_.recompute.value_or(true)) {}

std::shared_ptr<StoreCore> StoreCore::open(const Options& options, std::shared_ptr<const Topology> machine) {
  std::shared_ptr<StoreCore> core(new StoreCore(with_endurance(resolve(options)), std::move(machine)));
  const Options& asked = core->options_;
  const NumaNode node = core->host_node();
  core->host_.node = node;
  if (node != kAnyNode) check_node(core->topology(), node);
  core->min_bytes_ = asked.min_bytes.value_or(kDefaultMinBytes);
  core->min_bytes_of_devices_ = asked.min_bytes.value_or(kDefaultMinBytesOfDevices);
  const Bytes available = pinned_pool::Capacity().room().left;
  core->host_.budget = automatic_device_budget(available);
  if (asked.device_budget) {
    if (const Bytes* bytes = std::get_if<Bytes>(&*asked.device_budget)) {
      core->host_.budget = *bytes;
      core->host_.budget_given = true;
    }
  }
  core->aim_at_peak(core->host_, std::make_shared<ResidentSet>(), std::nullopt);
  core->freeze_plan();
  if (!asked.spill_to.empty()) {
    SpillOptions spill;
    spill.folders = asked.spill_to;
    spill.budget = asked.spill_budget;
    spill.reserve = asked.spill_reserve;
    spill.most_written_a_day = asked.spill_daily_writes;
    spill.checksum = asked.checksum.value_or(true);
    const NearNode near(node == kAnyNode ? nullptr : core->topology(), node);  // the tier's threads inherit
    auto tier = SpillTier::open(std::move(spill));
    if (!tier.ok()) throw ConfigError("spill_to: " + tier.failure().message);
    core->spill_ = std::move(tier).value();

    core->staging_budget_ = std::min(asked.host_budget.value_or(default_staging(core->host_.budget)), available);
    if (core->spill_->stats().ram)
      core->warnings_.push_back(
          "spill_to lies in memory (tmpfs): what is spilled there frees no memory; name a folder on a disk");
  }
  core->planner_.hold_within(core->conditions_locked());
  return core;
}

/// Null where nothing is bound.
const Topology* StoreCore::topology() {
  std::call_once(topology_loaded_, [&] {
    if (options_.numa == kAnyNode) topology_ = nullptr;
    if (topology_ || options_.numa == kAnyNode) return;
    auto loaded = Topology::load();
    if (loaded.ok()) topology_ = std::make_shared<const Topology>(std::move(loaded).value());
  });
  return topology_.get();
}

/// With a registrar: for DMA, which a fork must not disturb. Without: memory that CPU tensors are laid over, which a
/// forked child reads; the disk's rings must not have it pinned, for a fork copies what is pinned, all of it and at
/// once. Errors: ConfigError.
std::unique_ptr<PinnedPool> StoreCore::open_host_pool(Bytes capacity, std::shared_ptr<HostRegistrar> registrar) {
  PoolOptions pool;
  pool.capacity = capacity;
  pool.survives_fork = registrar == nullptr;
  pool.registrar = std::move(registrar);
  if (spill_ && !pool.survives_fork) pool.watcher = spill_->watcher();
  pool.keep_spare = false;
  pool.numa_bind = options_.numa != kAnyNode;
  const auto nodes = topology() != nullptr ? static_cast<int64_t>(topology_->nodes().size()) : 1;
  pool.topology = topology_;
  // Each node gets its own slabs: one must not take all the room.
  pool.slab_bytes = std::clamp(capacity / std::max<int64_t>(nodes, 1), kLeastPool, MiB(256));
  auto opened = PinnedPool::create(std::move(pool));
  if (!opened.ok()) throw ConfigError("host_budget: " + opened.failure().message);
  return std::move(opened).value();
}

StoreCore::~StoreCore() {
  if (link_thread_) link_thread_->end();
}

int StoreCore::add_device(std::shared_ptr<Device> device, std::shared_ptr<DeviceAllocator> allocator,
                          DeviceOptions how) {
  const Result<DeviceMemory> memory = device->memory();
  auto link = std::make_shared<DeviceLink>(device, allocator, how.bandwidth, how.host_clock);
  open_host_tier(device);
  NumaNode node = host_node();
  const Topology* machine = topology();
  if (!options_.numa && machine != nullptr) node = machine->node_of_pci(device->pci_address()).value_or(kAnyNode);
  DeviceTier made(device, 0);  // its budget: the framework may be asked before the lock only
  aim_at_peak(made, std::move(allocator), memory.ok() ? std::optional(memory.value().free) : std::nullopt);
  std::lock_guard lock(mutex_);
  if (how.own_thread) {
    const NearNode near(machine, node);  // one thread looks after all devices, near the first
    if (!link_thread_) link_thread_ = LinkThread::start(weak_from_this());
    if (link_thread_) link_thread_->add(link);
  }
  DeviceTier& tier = tiers_.emplace_back(std::move(device), tiers_.size());
  tier.link = std::move(link);
  tier.node = node;
  const Bytes* budget = options_.device_budget ? std::get_if<Bytes>(&*options_.device_budget) : nullptr;
  if (budget != nullptr)
    tier.budget = *budget;
  else if (memory.ok())
    tier.budget = automatic_device_budget(memory.value().free);
  tier.budget_given = budget != nullptr;
  if (made.goal) {
    tier.goal = std::move(made.goal);
    tier.meter = std::move(made.meter);
    tier.budget = made.budget;
    tier.budget_given = made.budget_given;
    tier.looks = tier.goal->looks();
  }
  if (options_.device_memory) {  // is of accelerators, where there are any
    host_.looks = PeakGoal::Looks::kNone;
    host_.goal = nullptr;
    host_.budget = automatic_device_budget(pinned_pool::Capacity().room().left);
    host_.budget_given = false;
  }
  expect_planned_locked(tier);
  return static_cast<int>(tier.index);
}

/// The staging of CPU tensors shares host_budget with the host tier of accelerators: whichever is opened first takes its
/// part. Fixed from then on, for who reads into it holds no lock.
void StoreCore::open_staging(std::optional<Bytes> most) {
  std::call_once(staging_opened_, [&] {
    const Bytes budget = std::min(staging_budget_, most.value_or(staging_budget_));
    std::unique_ptr<PinnedPool> pool = budget < kLeastPool ? nullptr : open_host_pool(budget, nullptr);
    std::lock_guard lock(mutex_);
    staging_budget_ = budget;
    pool_ = std::move(pool);
  });
}

void StoreCore::open_host_tier(const std::shared_ptr<Device>& device) {
  std::call_once(host_tier_opened_, [&] {
    const Bytes left = pinned_pool::Capacity().room().left;
    Bytes budget = std::min(options_.host_budget.value_or(automatic_host_budget(left)), left);
    open_staging(budget / 8);
    if (pool_) budget -= staging_budget_;
    if (budget < kLeastPool)
      throw ConfigError("host_budget: the tensors of " + device->name() + " need at least " + to_string(kLeastPool) +
                        " of it, and CPU tensors took " + to_string(staging_budget_));
    auto registrar = std::make_shared<DeviceRegistrar>(device);
    auto pool = open_host_pool(budget, registrar);
    std::lock_guard lock(mutex_);
    host_registrar_ = std::move(registrar);
    host_budget_ = budget;
    host_pool_ = std::move(pool);
  });
}

/// After the host tier may have grown.
void StoreCore::note_pageable() {
  if (!host_pool_->some_pageable() || pageable_said_.exchange(true)) return;
  warn(
      "some of the host memory that tensors leave for is not pinned, so that copies to it are slow and are waited "
      "for: " +
      host_pool_->stats().pageable_because);
}

Bytes StoreCore::trim() {
  std::vector<PinnedPool*> pools;  // once there, they stay
  {
    std::lock_guard lock(mutex_);
    pools = {pool_.get(), host_pool_.get()};
  }
  Bytes given_back;
  for (PinnedPool* pool : pools)
    if (pool != nullptr) given_back += pool->trim();
  return given_back;
}

Stats StoreCore::stats() const {
  Stats stats;
  std::vector<std::shared_ptr<DeviceLink>> links;
  const PinnedPool* staging = nullptr;  // both stay, once there
  const PinnedPool* host = nullptr;
  {
    std::lock_guard lock(mutex_);
    staging = pool_.get();
    host = host_pool_.get();
    stats = stats_;
    stats.host.budget_bytes = staging_budget_ + host_budget_;
    stats.plans = planner_.plans();
    stats.measured_step_s = last_pass_.seconds;
    stats.measured_peak_bytes = last_pass_.device_peak;
    if (planner_.last()) {
      stats.predicted_step_s = planner_.last()->predicted_s;
      stats.lower_bound_step_s = planner_.last()->lower_bound_s;
      for (const Plan& plan : planner_.last()->plans) stats.predicted_peak_bytes += plan.predicted.device_peak;
    }
    stats.recipe_bytes = Bytes(recipe_bytes_.load());
    stats.recipe_bytes_peak = Bytes(recipe_bytes_peak_.load());
    for (const auto& [reason, count] : passed_through_) stats.passed_through_reasons[reason] = count;
    for (const auto& [op, count] : recomputed_ops_) stats.recomputed_ops[op] = count;
    for (const auto& [label, fates] : regions_) stats.regions[label->name] += fates;
    for (const auto& [op, sites] : unequal_redos_) stats.unequal_redos[op] = sites;
    for (const auto& [cause, waits] : stalls_) stats.stalls[cause] = waits;
    for (const auto& [op, waits] : returns_waited_for_) stats.returns_waited_for[op_name(op)] = waits;
    for (const auto& [label, waits] : stalled_regions_) stats.stalled_regions[label->name] += waits;
    for (const DeviceTier& tier : tiers_) {
      stats.devices.push_back({{tier.held(), tier.peak(), tier.budget},
                               tier.device->name(),
                               tier.handed_over(),
                               tier.handed_over_peak(),
                               tier.referenced_elsewhere(),
                               tier.referenced_elsewhere_peak(),
                               tier.alive_peak(),
                               tier.burst,
                               memory_stats_locked(tier)});
      if (tier.link) links.push_back(tier.link);
    }
    // Beside an accelerator the budget of CPU tensors says nothing; what they hold counts.
    for (const DeviceStats& device : stats.devices) {
      stats.device.bytes += device.bytes;
      stats.device.peak_bytes += device.peak_bytes;
      stats.handed_over += device.handed_over;
      stats.handed_over_peak += device.handed_over_peak;
      stats.referenced_elsewhere += device.referenced_elsewhere;
      stats.referenced_elsewhere_peak += device.referenced_elsewhere_peak;
      stats.alive_peak += device.alive_peak;
      if (links.empty() || &device != &stats.devices.front()) stats.device.budget_bytes += device.budget_bytes;
    }
  }
  if (in_child_) return stats;  // where a fork may have left their locks taken for ever
  for (const auto& link : links) {
    stats.d2h.bytes += link->out.stats().copied;
    stats.d2h.busy_s += link->out.stats().busy_s;
    stats.h2d.bytes += link->in.stats().copied;
    stats.h2d.busy_s += link->in.stats().busy_s;
  }
  if (staging != nullptr) {
    const PoolStats pool = staging->stats();
    stats.host.bytes = pool.slab_bytes;
    stats.host.peak_bytes = pool.peak_slab_bytes;
    stats.host_other_node = pool.other_node;
  }
  if (host != nullptr) {
    const PoolStats pool = host->stats();
    stats.host.bytes += pool.slab_bytes;
    stats.host.peak_bytes += pool.peak_slab_bytes;
    stats.host_other_node += pool.other_node;
    stats.host_pageable_because = pool.pageable_because;
  }
  if (spill_) {
    const SpillStats spill = spill_->stats();
    stats.spill = {spill.bytes, spill.peak_bytes, spill.budget};
    stats.disk_write = {spill.written, spill.write_busy_s};
    stats.disk_read = {spill.read, spill.read_busy_s};
    const std::chrono::duration<double> open_for = std::chrono::steady_clock::now() - opened_at_;
    stats.wear = wear_of(spill.written, stats.passes, open_for.count(), options_.spill_endurance);
  }
  return stats;
}

}  // namespace ebbtide
