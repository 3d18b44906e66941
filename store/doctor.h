// What a machine offers to a store, what would be used, and what is held back.
#pragma once

#include <ebbtide/nvme/drive_wear.h>
#include <ebbtide/nvme/measure_disk.h>
#include <ebbtide/pinned_pool/bytes.h>
#include <ebbtide/pinned_pool/capacity.h>
#include <ebbtide/pinned_pool/export.h>
#include <ebbtide/pinned_pool/numa_node.h>
#include <ebbtide/transfer/device.h>
#include <ebbtide/transfer/device_allocator.h>

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace ebbtide {

class Topology;

struct Diagnosis {
  struct Node {
    NumaNode number = kAnyNode;
    Bytes left, memory;
  };
  /// Bytes a second, of transfers of 16 MiB.
  struct Link {
    double out = 0, in = 0;                   ///< one way alone
    double out_with_in = 0, in_with_out = 0;  ///< both at once
  };
  struct Accelerator {
    std::string name;
    std::string pci_address;
    std::optional<NumaNode> node;  ///< nearest; none: not known
    Bytes free, memory;
    std::optional<Link> link;
    std::string refused;  ///< why it, or its link, cannot be used or measured; empty otherwise
  };
  struct Drive {
    std::string name;  ///< "nvme0n1"
    std::optional<nvme::DriveWear> wear;
    std::string refused;  ///< why that cannot be read; empty otherwise
  };
  struct Folder {
    std::string path;
    std::string description;  ///< the queue, the file system, what direct I/O wants there, or why there is none
    Bytes free;
    bool ram = false;  ///< tmpfs
    bool io_uring = false;
    std::optional<DiskSpeed> speed;
    std::vector<Drive> drives;  ///< NVMe, on which it lies, where the system says
    std::string refused;        ///< why nothing can be spilled there, or it could not be measured; empty otherwise
  };

  std::vector<pinned_pool::Room> memory;  ///< every bound on host memory: the machine's, then each cgroup's
  Bytes device_budget;                    ///< automatic, of CPU tensors
  Bytes host_budget;                      ///< automatic, of accelerators
  std::vector<Node> nodes;
  std::string unbound_because;   ///< why memory cannot be bound to a node; empty where it can
  std::string huge_pages;        ///< the kernel's setting: "always", "madvise", "never"; empty: not known
  std::optional<Bytes> memlock;  ///< bytes that a process may lock; none: no limit, or not known
  std::string jemalloc;          ///< version
  std::vector<Accelerator> accelerators;
  std::vector<Folder> folders;
  std::vector<std::string> advice;  ///< sentences; empty: nothing is held back
};

struct DoctorOptions {
  std::vector<std::string> folders;  ///< to spill to

  /// With the memory and on the stream that its link is measured with.
  struct Accelerator {
    std::string name;
    std::shared_ptr<Device> device;  ///< null: `refused` says why
    std::shared_ptr<DeviceAllocator> allocator;
    StreamId stream = kHostStream;
    std::string refused;
  };
  std::vector<Accelerator> accelerators;

  std::chrono::nanoseconds each_way =
      std::chrono::milliseconds(500);        ///< that a folder is measured, writing and reading
  std::string system_root;                   ///< put before /proc and /sys: tests bring their own machine
  std::shared_ptr<const Topology> topology;  ///< none: this machine's
  nvme::DriveCommand command_drive;          ///< none: the drives themselves are asked
};

/// Looks, and measures: takes about a second a folder. What it cannot find out is said in the answer.
/// Threads: any. Waits for disks and links.
EBBTIDE_API Diagnosis doctor(const DoctorOptions& options);

/// One screen for people.
EBBTIDE_API std::string to_text(const Diagnosis& diagnosis);
/// The same for programs: one object; bytes, and bytes a second.
EBBTIDE_API std::string to_json(const Diagnosis& diagnosis);

}  // namespace ebbtide
