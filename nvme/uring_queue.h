// io_uring: one thread, one ring, many requests in flight.
#pragma once

#include <ebbtide/nvme/io_queue.h>

namespace ebbtide::nvme {

/// Errors: kUnsupported, with what the kernel refused and its errno: a container that forbids io_uring, an old kernel,
/// no memory, no thread.
StartedQueue start_uring_queue(const QueueOptions& options, std::shared_ptr<IoSource> source);

}  // namespace ebbtide::nvme
