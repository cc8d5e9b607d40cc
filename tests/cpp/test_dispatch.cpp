// GPM_CORE_SIMD: what it names is taken, what it cannot name is an error, and it is read once.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "gpm/build_info.h"

namespace {

bool throws(const char* level) {
  setenv("GPM_CORE_SIMD", level, 1);
  try {
    gpm::cpu::simd_level();
  } catch (const std::invalid_argument& error) {
    return std::strstr(error.what(), level) != nullptr;
  }
  return false;
}

bool expect(bool condition, const char* what) {
  std::printf("%s %s\n", condition ? "ok    " : "FAILED", what);
  return condition;
}

}  // namespace

int main() {
  bool ok = expect(throws("sse9"), "an unknown level is an error");
  ok &= expect(throws("AVX2"), "so is a misspelt one");
  setenv("GPM_CORE_SIMD", "baseline", 1);
  ok &= expect(!std::strcmp(gpm::cpu::simd_level(), "baseline"), "a level that exists is taken");
  setenv("GPM_CORE_SIMD", "avx2", 1);
  ok &= expect(!std::strcmp(gpm::cpu::simd_level(), "baseline"), "and kept");
  ok &= expect(std::strlen(gpm::version()) > 0, gpm::version());
  ok &= expect(std::strlen(gpm::compiler()) > 0, gpm::compiler());
  return ok ? 0 : 1;
}
