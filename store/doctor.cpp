#include <ebbtide/pinned_pool/arena.h>
#include <ebbtide/pinned_pool/pool.h>
#include <ebbtide/pinned_pool/topology.h>
#include <ebbtide/store/automatic_budgets.h>
#include <ebbtide/store/device_registrar.h>
#include <ebbtide/store/doctor.h>
#include <ebbtide/transfer/clock.h>
#include <ebbtide/transfer/measure_link.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <utility>

namespace ebbtide {
namespace {

constexpr Bytes kTransfer = MiB(16);

std::string line_of(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

/// "always [madvise] never": the one in brackets.
std::string chosen_of(const std::string& line) {
  const size_t begin = line.find('[');
  const size_t end = line.find(']', begin);
  if (begin == std::string::npos || end == std::string::npos) return {};
  return line.substr(begin + 1, end - begin - 1);
}

/// "Max locked memory         65536                65536                bytes".
std::optional<Bytes> memlock_of(const std::string& path) {
  constexpr std::string_view kKey = "Max locked memory";
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (line.compare(0, kKey.size(), kKey) != 0) continue;
    const size_t begin = line.find_first_not_of(' ', kKey.size());
    int64_t bytes = 0;
    if (begin == std::string::npos ||
        std::from_chars(line.data() + begin, line.data() + line.size(), bytes).ec != std::errc())
      return std::nullopt;  // "unlimited"
    return Bytes(bytes);
  }
  return std::nullopt;
}

/// Why memory cannot be bound, by a slab that tries.
std::string try_binding(const DoctorOptions& options, const std::shared_ptr<const Topology>& topology) {
  auto pool = PinnedPool::create({.capacity = MiB(2),
                                  .slab_bytes = MiB(2),
                                  .keep_spare = false,
                                  .topology = topology,
                                  .system_root = options.system_root});
  if (!pool.ok()) return pool.failure().message;
  const auto block = pool.value()->acquire({.bytes = MiB(1)});
  if (!block.ok()) return block.failure().message;
  return pool.value()->stats().unbound_because;
}

Result<Diagnosis::Link> measure(const DoctorOptions::Accelerator& accelerator) {
  Device& device = *accelerator.device;
  auto pool = PinnedPool::create({.capacity = kTransfer * 2,
                                  .slab_bytes = kTransfer * 2,
                                  .registrar = std::make_shared<DeviceRegistrar>(accelerator.device),
                                  .keep_spare = false,
                                  .survives_fork = false});
  if (!pool.ok()) return std::move(pool).failure();
  std::vector<Block> host;
  std::vector<std::shared_ptr<DeviceStorage>> there;
  for (int i = 0; i < 2; ++i) {
    auto block = pool.value()->acquire({.bytes = kTransfer, .contiguous = true});
    if (!block.ok()) return std::move(block).failure();
    host.push_back(std::move(block).value());
    auto storage = accelerator.allocator->allocate(kTransfer, accelerator.stream);
    if (!storage.ok()) return std::move(storage).failure();
    there.push_back(std::move(storage).value());
  }
  if (pool.value()->some_pageable())
    return Failure{FailureCode::kUnsupported, 0, pool.value()->stats().pageable_because};
  // What the program enqueued may still read memory that the allocator has just given us.
  auto free_now = device.record(accelerator.stream);
  if (!free_now.ok()) return std::move(free_now).failure();
  for (const Direction direction : {Direction::kOut, Direction::kIn})
    if (Status waits = device.wait(device.copy_stream(direction), free_now.value()); !waits.ok())
      return std::move(waits).failure();
  const SteadyClock clock;
  auto bandwidth = measure_link(device, clock,
                                {.host_out = host[0].chunks()[0].data,
                                 .host_in = host[1].chunks()[0].data,
                                 .device_out = there[0]->data(),
                                 .device_in = there[1]->data(),
                                 .bytes = static_cast<size_t>(kTransfer.count())});
  if (!bandwidth.ok()) {
    // Copies may still run: what they touch is never given back.
    (void)new auto(std::pair(std::move(host), std::move(there)));
    return std::move(bandwidth).failure();
  }
  const auto speed = [](const Bandwidth& way, LinkUse use) { return way.bytes_per_second(kTransfer, use).value_or(0); };
  const LinkBandwidth& found = bandwidth.value();
  return Diagnosis::Link{speed(found.out, LinkUse::kAlone), speed(found.in, LinkUse::kAlone),
                         speed(found.out, LinkUse::kDuplex), speed(found.in, LinkUse::kDuplex)};
}

Diagnosis::Accelerator examine(const DoctorOptions::Accelerator& accelerator, const Topology* topology) {
  Diagnosis::Accelerator found{.name = accelerator.name, .refused = accelerator.refused};
  if (!accelerator.device) return found;
  Device& device = *accelerator.device;
  found.pci_address = device.pci_address();
  if (topology != nullptr) found.node = topology->node_of_pci(found.pci_address);
  if (const auto memory = device.memory(); memory.ok()) {
    found.free = memory.value().free;
    found.memory = memory.value().total;
  }
  auto link = measure(accelerator);
  if (link.ok())
    found.link = link.value();
  else
    found.refused = std::move(link).failure().message;
  return found;
}

Diagnosis::Drive examine_drive(const std::string& name, const nvme::DriveCommand& command) {
  auto wear = command ? nvme::read_drive_wear(name, command) : nvme::read_drive_wear(name);
  if (!wear.ok()) return {.name = name, .refused = std::move(wear).failure().message};
  return {.name = name, .wear = wear.value()};
}

Diagnosis::Folder examine(const std::string& path, const DoctorOptions& options) {
  Diagnosis::Folder found{.path = path};
  std::error_code error;
  const auto space = std::filesystem::space(path, error);
  if (!error) found.free = Bytes(static_cast<int64_t>(space.available));
  for (const std::string& drive : nvme::drives_beneath(path, options.system_root))
    found.drives.push_back(examine_drive(drive, options.command_drive));
  auto tier = SpillTier::open({.folders = {path}});
  if (!tier.ok()) {
    found.refused = std::move(tier).failure().message;
    return found;
  }
  const SpillStats stats = tier.value()->stats();
  found.description = stats.description;
  found.ram = stats.ram;
  found.io_uring = stats.io_uring;
  auto speed = measure_disk(*tier.value(), options.each_way);
  if (speed.ok())
    found.speed = speed.value();
  else
    found.refused = std::move(speed).failure().message;
  tier.value()->close();
  return found;
}

std::vector<std::string> advice_for(const Diagnosis& found, const DoctorOptions& options) {
  std::vector<std::string> advice;
  if (found.huge_pages == "never")
    advice.push_back(
        "Huge pages are switched off, so that host memory takes three times as long to get: "
        "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled");
  if (found.memlock && *found.memlock < MiB(64))
    advice.push_back("A process may lock " + to_string(*found.memlock) +
                     " of memory: kernels before 5.12 count io_uring's queues in it, some drivers what they pin: "
                     "ulimit -l unlimited");
  if (found.nodes.size() > 1) {
    if (!found.unbound_because.empty())
      advice.push_back("Host memory comes from any NUMA node: " + found.unbound_because);
    for (const auto& accelerator : found.accelerators)
      if (!accelerator.node && !accelerator.pci_address.empty())
        advice.push_back("Which NUMA node " + accelerator.name +
                         " is near is not known here: name it with the option numa");
  }
  for (const auto& accelerator : found.accelerators)
    if (!accelerator.refused.empty()) advice.push_back(accelerator.name + ": " + accelerator.refused);
  if (found.folders.empty())
    advice.push_back(
        "No folder to spill to was named: with spill_to on a fast disk, more is trained than memory holds");
  const std::string disabled = line_of(options.system_root + "/proc/sys/kernel/io_uring_disabled");
  for (const auto& folder : found.folders) {
    if (!folder.refused.empty()) advice.push_back(folder.path + ": " + folder.refused);
    if (folder.ram) advice.push_back(folder.path + " lies in memory (tmpfs): what is spilled there frees none");
    if (!folder.description.empty() && !folder.io_uring)
      advice.push_back(folder.path + " is served by threads, which costs more of the processor than io_uring" +
                       (disabled.empty() || disabled == "0" ? std::string() : ": sysctl kernel.io_uring_disabled=0"));
    for (const auto& drive : folder.drives)
      if (drive.wear && drive.wear->used_percent >= 90)
        advice.push_back(drive.name + " has " + std::to_string(drive.wear->used_percent) +
                         "% of its rated life behind it: spill_daily_writes bounds what is written to it a day");
  }
  if (found.accelerators.empty() && std::getenv("MALLOC_MMAP_THRESHOLD_") == nullptr)
    advice.push_back(
        "glibc keeps freed blocks of 6 to 24 MiB: with MALLOC_MMAP_THRESHOLD_=131072 in the environment the process's "
        "memory follows the budget");
  return advice;
}

}  // namespace

Diagnosis doctor(const DoctorOptions& options) {
  Diagnosis found;
  const pinned_pool::Capacity capacity(options.system_root);
  found.memory = capacity.bounds();
  const Bytes left = capacity.room().left;
  found.device_budget = automatic_device_budget(left);
  found.host_budget = automatic_host_budget(left);
  std::shared_ptr<const Topology> topology = options.topology;
  if (!topology) {
    if (auto loaded = Topology::load(); loaded.ok())
      topology = std::make_shared<const Topology>(std::move(loaded).value());
    else
      found.unbound_because = std::move(loaded).failure().message;
  }
  if (topology) {
    for (const NumaNode node : topology->nodes()) {
      const pinned_pool::Room room = capacity.room_on(node);
      found.nodes.push_back({node, room.left, room.limit});
    }
    found.unbound_because = try_binding(options, topology);
  }
  found.huge_pages = chosen_of(line_of(options.system_root + "/sys/kernel/mm/transparent_hugepage/enabled"));
  found.memlock = memlock_of(options.system_root + "/proc/self/limits");
  found.jemalloc = pinned_pool::jemalloc_version();
  for (const auto& accelerator : options.accelerators)
    found.accelerators.push_back(examine(accelerator, topology.get()));
  for (const std::string& folder : options.folders) found.folders.push_back(examine(folder, options));
  found.advice = advice_for(found, options);
  return found;
}

}  // namespace ebbtide
