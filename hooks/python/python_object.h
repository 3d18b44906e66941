// A Python object in the hands of hooks, which die on any thread.
#pragma once

#include <torch/csrc/utils/pybind.h>

namespace ebbtide {

/// Let go of by a thread that has the GIL, and nobody waits for that: the last one to hold it is a hook.
/// Threads: made and looked at with the GIL; destroyed on any.
class HeldObject {
 public:
  explicit HeldObject(pybind11::object object);
  ~HeldObject();
  HeldObject(const HeldObject&) = delete;
  HeldObject& operator=(const HeldObject&) = delete;

  pybind11::object get() const { return pybind11::reinterpret_borrow<pybind11::object>(object_); }

 private:
  PyObject* const object_;
};

/// Restores and rethrows the Python error under way in a form that passes through torch from any thread.
[[noreturn]] void pass_on(pybind11::error_already_set& error);

}  // namespace ebbtide
