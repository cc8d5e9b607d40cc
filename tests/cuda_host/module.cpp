// What the Python tests ask of the stand-in for a GPU, as gpm_cuda_host.host.
#include <pybind11/pybind11.h>

#include <memory>

#include "cuda_host/control.h"

namespace py = pybind11;
namespace host = gpm::cuda::cuda_host;

namespace {

py::dict as_dict(const host::Count& count) {
  py::dict d;
  d["bytes"] = count.bytes;
  d["sectors"] = count.sectors;
  d["distinct_sectors"] = count.distinct_sectors;
  d["requests"] = count.requests;
  d["request_sectors"] = count.request_sectors;
  return d;
}

}  // namespace

void define_cuda_host(py::module_& m) {
  py::module_ h = m.def_submodule("host", "The stand-in for a GPU.");
  h.def("set_seed", &host::set_seed, "Decides the order of blocks and threads.");
  h.def("launches", &host::launches, "How many launches there were.");
  h.def(
      "fail_next_launch", [](int status) { host::fail_next_launch(cudaError_t(status)); },
      "Make the next launch fail with this cudaError_t.");
  h.def("start_traffic", &host::start_traffic, "Count accesses to global memory from now on.");
  h.def(
      "stop_traffic",
      [] {
        const host::Traffic traffic = host::stop_traffic();
        py::dict d;
        d["read"] = as_dict(traffic.read);
        d["written"] = as_dict(traffic.written);
        py::list launches;
        for (const host::Launch& launch : traffic.launches)
          launches.append(py::make_tuple(launch.blocks, launch.threads, launch.shared_bytes));
        d["launches"] = launches;
        return d;
      },
      "What was counted, and the launches: (blocks, threads, bytes of shared memory).");
}
