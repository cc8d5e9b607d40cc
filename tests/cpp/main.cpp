// Runs the tests of one executable with the vector instructions that GPM_CORE_SIMD names.
#include <cstdlib>
#include <cstring>
#include <exception>
#include <vector>

#include "check.h"
#include "gpm/build_info.h"

namespace check {

int failures = 0;
std::string context;

namespace {

struct Test {
  const char* name;
  void (*run)();
};

std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

}  // namespace

bool add(const char* name, void (*run)()) {
  tests().push_back({name, run});
  return true;
}

}  // namespace check

int main() {
  try {
    const char* wanted = std::getenv("GPM_CORE_SIMD");
    const char* level = gpm::cpu::simd_level();
    std::printf("vector instructions: %s\n", level);
    if (wanted && *wanted && std::strcmp(wanted, level) != 0) return 1;
  } catch (const std::exception& error) {
    std::puts(error.what());
    return std::strstr(error.what(), "does not have it") ? 77 : 1;  // 77: skipped
  }
  for (const check::Test& test : check::tests()) {
    const int before = check::failures;
    check::context.clear();
    try {
      test.run();
    } catch (const std::exception& error) {
      check::fail(__FILE__, __LINE__, test.name, "%s", error.what());
    }
    std::printf("%s %s\n", check::failures == before ? "ok    " : "FAILED", test.name);
  }
  return check::failures == 0 ? 0 : 1;
}
