#include <ebbtide/hooks/pass_through.h>
#include <ebbtide/hooks/python/python_object.h>
#include <ebbtide/hooks/python/wrapper_bindings.h>
#include <ebbtide/hooks/wrapper.h>

#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/autograd/python_variable.h>

#include <pybind11/stl.h>

#include <memory>
#include <utility>
#include <vector>

namespace py = pybind11;

namespace ebbtide {
namespace {

class PythonWrapper final : public EmptyWrapper {
 public:
  explicit PythonWrapper(py::object over) : over_(std::move(over)) {}
  at::Tensor over(const std::vector<at::Tensor>& inner) const override {
    const py::gil_scoped_acquire gil;
    try {
      return over_.get()(inner).cast<at::Tensor>();
    } catch (py::error_already_set& error) {
      pass_on(error);
    }
  }

 private:
  const HeldObject over_;
};

PyObject* function = nullptr;  // as long as the module: for ever

TakenApart take_apart_in_python(const at::Tensor& tensor) {
  // What a mode makes of tensors (fakes, proxies) is its own business.
  if (Py_IsInitialized() == 0 || c10::impl::TorchDispatchModeTLS::any_modes_set()) return {};
  const py::gil_scoped_acquire gil;
  try {
    const auto apart = py::reinterpret_borrow<py::object>(function)(tensor);
    if (apart.is_none()) return {};
    const auto parts = apart.cast<py::tuple>();
    return {parts[0].cast<std::vector<at::Tensor>>(), std::make_unique<PythonWrapper>(parts[1])};
  } catch (py::error_already_set& error) {
    pass_on(error);
  }
}

/// Whether the object of Python's is more than a tensor. Of what a custom function saves, which is done with the GIL; of
/// what torch's own ops save without it, Python sees nothing again but through their nodes.
bool has_python_part(const at::Tensor& tensor) {
  if (Py_IsInitialized() == 0 || PyGILState_Check() == 0) return false;
  const auto object = py::reinterpret_steal<py::object>(THPVariable_Wrap(tensor));
  if (!object) throw py::error_already_set();
  if (reinterpret_cast<PyObject*>(Py_TYPE(object.ptr())) != THPVariableClass) return true;
  const auto attributes = py::reinterpret_steal<py::object>(PyObject_GenericGetDict(object.ptr(), nullptr));
  if (!attributes) throw py::error_already_set();
  return PyDict_GET_SIZE(attributes.ptr()) != 0;
}

}  // namespace

void bind_wrappers(py::module_& module) {
  set_has_python_part(&has_python_part);
  module.def("take_apart_by", [](py::object by) {
    function = by.release().ptr();
    set_take_apart(&take_apart_in_python);
  });
}

}  // namespace ebbtide
