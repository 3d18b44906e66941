#include <ebbtide/hooks/checkpoint.h>
#include <ebbtide/hooks/module_path.h>
#include <ebbtide/hooks/python/checkpoint_bindings.h>
#include <ebbtide/hooks/python/python_object.h>
#include <ebbtide/hooks/region.h>

#include <torch/csrc/utils/pybind.h>

#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace py = pybind11;

namespace ebbtide {
namespace {

/// A Python function that any thread may call.
class PythonFunction {
 public:
  explicit PythonFunction(py::object function) : function_(std::move(function)) {}

  /// Errors: the function's, in a form that passes through torch from any thread.
  void operator()(const std::vector<at::Tensor>& tensors) const {
    const py::gil_scoped_acquire gil;
    try {
      py::list list;
      for (const at::Tensor& tensor : tensors) list.append(tensor);
      (void)function_.get()(std::move(list));
    } catch (py::error_already_set& error) {
      pass_on(error);
    }
  }

 private:
  const HeldObject function_;
};

py::object run_checkpoint(const py::object& first, py::object again, const std::vector<at::Tensor>& tensors,
                          bool several_processes) {
  CheckpointedRun run(
      tensors,
      [function = std::make_shared<PythonFunction>(std::move(again))](const std::vector<at::Tensor>& values) {
        (*function)(values);
      },
      several_processes ? CheckpointedRun::Collectives::kPossible : CheckpointedRun::Collectives::kNone);
  py::object result = first();
  run.finish();
  return result;
}

}  // namespace

void bind_checkpoint(py::module_& module) {
  module.def("checkpoint", &run_checkpoint);
  py::class_<Region>(module, "Region").def(py::init([](const std::string& name, const std::string& policy) {
    return std::make_unique<Region>(name, parse_policy(policy));
  }));
  py::class_<ModulePath>(module, "ModulePath")
      .def(py::init<std::string_view>())
      .def("enter", &ModulePath::enter)
      .def("leave", &ModulePath::leave)
      .def_static("depth", &ModulePath::depth)
      .def_static("leave_to", &ModulePath::leave_to);
  module.def("check_region", [](const std::string& name, const std::string& policy) {
    (void)RegionLabel::of(name, parse_policy(policy));
  });
}

}  // namespace ebbtide
