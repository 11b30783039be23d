// Runs every TEST of this folder with the instruction set that WIDEDEEP_ISA names.
#include <cstdlib>
#include <cstring>

#include "check.hpp"
#include "cpu_features.hpp"

int main() {
  const char* wanted = std::getenv("WIDEDEEP_ISA");
  const char* best = widedeep::isa_name(widedeep::detect_isa());
  // The names sort by what they ask for: avx2 < avx512, and baseline runs everywhere.
  if (wanted != nullptr && std::strcmp(wanted, "baseline") != 0 &&
      (std::strcmp(best, "baseline") == 0 || std::strcmp(best, wanted) < 0)) {
    std::printf("skipped: this processor supports %s, not %s\n", best, wanted);
    return 0;
  }
  std::printf("instruction set: %s\n", widedeep::isa_name(widedeep::active_isa()));
  for (const auto& test : widedeep::testing::tests()) {
    std::printf("  %s\n", test.name);
    std::fflush(stdout);
    test.run();
  }
  std::printf("%zu passed, 0 failed\n", widedeep::testing::tests().size());
  return 0;
}
