// Runs every TEST of this folder with the instruction set that WIDEDEEP_ISA names, but those named
// as arguments.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <string>

#include "check.hpp"
#include "cpu_features.hpp"

int main(int argc, char** argv) {
  const std::vector<std::string> left_out(argv + 1, argv + argc);
  const char* wanted = std::getenv("WIDEDEEP_ISA");
  const char* best = widedeep::isa_name(widedeep::detect_isa());
  // The names sort by what they ask for: avx2 < avx512, and baseline runs everywhere.
  if (wanted != nullptr && std::strcmp(wanted, "baseline") != 0 &&
      (std::strcmp(best, "baseline") == 0 || std::strcmp(best, wanted) < 0)) {
    std::printf("skipped: this processor supports %s, not %s\n", best, wanted);
    return 0;
  }
  std::printf("instruction set: %s\n", widedeep::isa_name(widedeep::active_isa()));
  int passed = 0;
  for (const auto& test : widedeep::testing::tests()) {
    if (std::find(left_out.begin(), left_out.end(), test.name) != left_out.end()) continue;
    std::printf("  %s\n", test.name);
    std::fflush(stdout);
    test.run();
    ++passed;
  }
  std::printf("%d passed, 0 failed, %zu skipped\n", passed,
              widedeep::testing::tests().size() - static_cast<std::size_t>(passed));
  return 0;
}
