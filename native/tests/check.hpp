// The smallest test harness that does: a list of named functions and one macro.
//
//   TEST(part_ranges_cover_all_tasks) { CHECK(task_range(3, 2, 0).end == 2); }
#pragma once

#include <cstdio>
#include <cstdlib>
#include <vector>

namespace widedeep::testing {

struct Test {
  const char* name;
  void (*run)();
};

inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

struct Registration {
  Registration(const char* name, void (*run)()) { tests().push_back({name, run}); }
};

[[noreturn]] inline void fail(const char* file, int line, const char* condition) {
  std::fprintf(stderr, "%s:%d: CHECK(%s) is false\n", file, line, condition);
  std::abort();
}

}  // namespace widedeep::testing

#define TEST(name)                                                                    \
  static void test_##name();                                                          \
  static const ::widedeep::testing::Registration register_##name{#name, test_##name}; \
  static void test_##name()

#define CHECK(condition) \
  ((condition) ? void(0) : ::widedeep::testing::fail(__FILE__, __LINE__, #condition))
