// pread and pwrite on a few threads: for machines and containers without io_uring.
#pragma once

#include <ebbtide/nvme/io_queue.h>

namespace ebbtide::nvme {

/// Errors: kUnsupported, no thread could be started.
StartedQueue start_thread_queue(const QueueOptions& options, std::shared_ptr<IoSource> source);

}  // namespace ebbtide::nvme
