// All that these tests need of a framework: TEST and CHECK. The rest is in main.cpp.
#pragma once

#include <cstdio>
#include <string>

namespace check {

extern int failures;
extern std::string context;  // what a test is at, printed with its failures

// Not inline: it runs before anybody knows which instructions the processor has.
bool add(const char* name, void (*run)());

template <class... Values>
void fail(const char* file, int line, const char* condition, const char* format, Values... values) {
  if (++failures > 20) return;
  std::printf("%s:%d: not true: %s [%s] ", file, line, condition, context.c_str());
  if constexpr (sizeof...(Values) == 0)
    std::fputs(format, stdout);
  else
    std::printf(format, values...);
  std::putchar('\n');
}

}  // namespace check

// TEST(name) { ... } is run by main().
#define TEST(name)                                                       \
  static void name();                                                    \
  [[maybe_unused]] static const bool name##_ = check::add(#name, &name); \
  static void name()

// CHECK(condition, format, values...) goes on after a failure.
#define CHECK(condition, ...) \
  ((condition) ? void() : check::fail(__FILE__, __LINE__, #condition, __VA_ARGS__))
