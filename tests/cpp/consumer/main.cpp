#include <gpm/gpm.h>

#include <cstdio>

int main() {
  const float a[] = {1, 2, 3, 4}, b[] = {5, 6, 7, 8};
  float s = 0;
  gpm::cpu::score({gpm::DType::float32, 1, 4, {a, 4}, {b, 4}, {}, &s}, 1);
  std::printf("s(a > b) = %g with %s\n", s, gpm::cpu::simd_level());
  return s == -8 ? 0 : 1;  // 1*6 - 2*5 + 3*8 - 4*7
}
