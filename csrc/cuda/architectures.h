// Which GPUs the kernels were built for.
#pragma once

#include <cstdlib>
#include <sstream>
#include <string>

namespace gpm::cuda {

// Whether one of the built architectures serves a device: sm_XY those of the same major version
// from Y on, compute_XY all later ones, which the driver compiles for, if it knows the PTX.
inline bool is_served(const char* built, int major, int minor, bool driver_knows_ptx) {
  std::istringstream names(built);
  for (std::string name; names >> name;) {
    const bool ptx = name.rfind("compute_", 0) == 0;
    const std::string digits = name.substr(name.find('_') + 1);
    const int number = std::atoi(digits.c_str());
    if (number == 0) return true;  // such as "native": built for the devices that are here
    const bool exact = digits.back() == 'a';
    if (exact ? number == 10 * major + minor
        : ptx ? driver_knows_ptx && number <= 10 * major + minor
              : number / 10 == major && number % 10 <= minor)
      return true;
  }
  return false;
}

}  // namespace gpm::cuda
