// Torch's allocator of the pretend devices.
#pragma once

#include <c10/core/CachingDeviceAllocator.h>

namespace ebbtide::test {

/// Memory of the current device for its current stream, reused and poisoned in that stream's order. As CUDA's: memory
/// that recordStream marked stays live until what those streams have enqueued at its end is done; over the cap it waits
/// for such memory, then throws c10::OutOfMemoryError.
/// Lifetime: leaked, torch keeps the pointer.
c10::DeviceAllocator& sim_allocator();

/// See SimAccelerator::set_apart. Memory of other allocators is let pass.
void sim_set_apart(const c10::DataPtr& data);

}  // namespace ebbtide::test
