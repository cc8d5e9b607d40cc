// Whether kernels can run on this machine.
#include <cuda_runtime.h>

#include <string>

#include "cuda/architectures.h"
#include "gpm/build_info.h"

namespace gpm::cuda {
namespace {

std::string dotted(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
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
    if (!is_served(architectures(), major, minor, driver >= runtime))
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
