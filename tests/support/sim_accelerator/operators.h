// Operators on the pretend devices: the CPU's kernels, run when the stream comes to them.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>

namespace ebbtide::test {

/// The boxed kernel of every operator that has none of its own (kernels.cpp). It enqueues a task on the current stream
/// of the arguments' device; the task runs the CPU's kernel on device memory. What the operator reads and writes is
/// told to the race detector.
///
/// Shapes are found when it is called, by a rehearsal on zeros. Operators whose result depends on bytes at once (item,
/// nonzero) make the host wait for the stream, as on a GPU. Random numbers are drawn when it is called, from the CPU's
/// generator.
///
/// Errors: as the CPU's kernel, from the rehearsal; one that only the real bytes bring about (an index out of range) is
/// a fault of the device, reported by SimAccelerator::complaints().
void run_on_device(const c10::OperatorHandle& op, torch::jit::Stack* stack);

/// A composite kernel wins over a backend's fallback and rounds otherwise than the CPU's own: where the CPU has one,
/// that is taken. Once a process, when all kernels are registered.
void prefer_cpu_kernels();

}  // namespace ebbtide::test
