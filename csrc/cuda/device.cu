// Whether kernels can run on this machine.
#include <cuda_runtime.h>

#include <cstdlib>
#include <sstream>
#include <string>

#include "cuda/launch.cuh"
#include "gpm/build_info.h"

namespace gpm::cuda {
namespace {

std::string dotted(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

// Whether one of the architectures that were built serves a device: sm_XY those of the same major
// version from Y on, compute_XY all later ones, which the driver compiles for, if it knows the PTX.
bool is_served(int major, int minor, bool driver_knows_ptx) {
  std::istringstream names(architectures());
  for (std::string name; names >> name;) {
    const bool ptx = name.rfind("compute_", 0) == 0;
    const std::string digits = name.substr(name.find('_') + 1);
    const int built = std::atoi(digits.c_str());
    if (built == 0) return true;  // such as "native": built for the devices that are here
    const bool exact = !digits.empty() && digits.back() == 'a';
    if (exact ? built == 10 * major + minor
        : ptx ? driver_knows_ptx && built <= 10 * major + minor
              : built / 10 == major && built % 10 <= minor)
      return true;
  }
  return false;
}

// What stands in the way, with the error state left to the caller.
std::string reason() {
  int driver = 0, runtime = 0, devices = 0;
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  if (driver == 0) return "no NVIDIA driver is installed";
  // Within a major version any driver runs machine code.
  if (driver / 1000 < runtime / 1000)
    return "the NVIDIA driver supports CUDA " + dotted(driver) +
           ", and the kernels were built with CUDA " + dotted(runtime);
  const cudaError_t status = cudaGetDeviceCount(&devices);
  if (status != cudaSuccess) return std::string("no device: ") + cudaGetErrorString(status);
  for (int device = 0; device < devices; ++device) {
    int major = 0, minor = 0;
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    if (!is_served(major, minor, driver >= runtime))
      return "device " + std::to_string(device) + " has compute capability " +
             std::to_string(major) + "." + std::to_string(minor) +
             ", and the kernels were built for " + architectures() + " with CUDA " +
             dotted(runtime) + " (CUDA_VISIBLE_DEVICES hides devices)";
  }
  return "";
}

}  // namespace

std::string why_not() {
  std::string text = reason();
  cudaGetLastError();
  return text;
}

}  // namespace gpm::cuda
