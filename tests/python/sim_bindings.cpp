// The pretend accelerators for Python tests, and stores that serve them.
#include <ebbtide/hooks/accelerators.h>
#include <ebbtide/hooks/scope.h>
#include <ebbtide/store/store.h>

#include <c10/core/CachingDeviceAllocator.h>
#include <torch/csrc/utils/pybind.h>

#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "tests/support/sim_accelerator/sim_accelerator.h"
#include "tests/support/sim_accelerator/sim_device.h"

namespace py = pybind11;

namespace ebbtide::test {
namespace {

/// One life of the devices, which ends when told to: Python objects end when they please.
class Life {
 public:
  explicit Life(SimOptions options) : sim_(std::make_unique<SimAccelerator>(options)) {}
  void end() { sim_.reset(); }

  int64_t allocated(c10::DeviceIndex index) const { return sim_->allocated(index).count(); }
  int64_t peak(c10::DeviceIndex index) const { return sim_->peak(index).count(); }
  int64_t peak_of_others(c10::DeviceIndex index) const { return sim_->peak_of_others(index).count(); }
  std::vector<std::string> complaints() const { return sim_->complaints(); }
  void run_all() {
    for (c10::DeviceIndex i = 0; i < SimAccelerator::kDevices; ++i) sim_->chaos(i)->run_all();
    c10::getDeviceAllocator(c10::DeviceType::PrivateUse1)->emptyCache();  // of what recordStream held back
  }

 private:
  std::unique_ptr<SimAccelerator> sim_;
};

void serve(const Store& store) {
  hooks_of(*store.core())->accelerators.serve(c10::DeviceType::PrivateUse1, [](c10::DeviceIndex index) {
    return Result<std::shared_ptr<Device>>(sim_device(index)->chaos);
  });
}

}  // namespace
}  // namespace ebbtide::test

PYBIND11_MODULE(_ebbtide_sim, module) {
  using namespace ebbtide;
  using namespace ebbtide::test;
  using Released = py::call_guard<py::gil_scoped_release>;

  py::enum_<Pace>(module, "Pace")
      .value("eager", Pace::kEager)
      .value("lazy", Pace::kLazy)
      .value("random", Pace::kRandom);

  py::class_<Life>(module, "Life")
      .def(py::init([](uint64_t seed, std::optional<Pace> pace, int64_t capacity) {
             return Life({seed, pace, Bytes(capacity)});
           }),
           py::kw_only(), py::arg("seed") = 0, py::arg("pace") = py::none(), py::arg("capacity") = int64_t{1} << 30)
      .def("end", &Life::end, Released())
      .def("allocated", &Life::allocated, py::arg("index") = 0)
      .def("peak", &Life::peak, py::arg("index") = 0)
      .def("peak_of_others", &Life::peak_of_others, py::arg("index") = 0)
      .def("complaints", &Life::complaints, Released())
      .def("run_all", &Life::run_all, Released());

  module.attr("DEVICES") = static_cast<int>(SimAccelerator::kDevices);
  module.def("current_device", [] { return static_cast<int>(current_sim_device()); });
  module.def("exchange_device",
             [](int index) { return static_cast<int>(exchange_sim_device(static_cast<c10::DeviceIndex>(index))); });
  module.def("set_apart", &SimAccelerator::set_apart);
  module.def("serve", &serve);
}
