#include "check.hpp"
#include "flush_to_zero.hpp"
#include "thread_pool.hpp"

namespace {

// Half of the smallest normal float: 0 when denormals are flushed. `volatile` keeps the compiler
// from working it out.
float half_of_smallest_normal() {
  volatile float smallest = 1.17549435e-38F;
  volatile float half = 0.5F;
  return smallest * half;
}

}  // namespace

TEST(denormals_are_zero_inside_a_scope_and_back_after_it) {
  CHECK(half_of_smallest_normal() > 0.0F);
  {
    const widedeep::ScopedFlushToZero outer;
    {
      const widedeep::ScopedFlushToZero inner;
      CHECK(half_of_smallest_normal() == 0.0F);
    }
    CHECK(half_of_smallest_normal() == 0.0F);
  }
  CHECK(half_of_smallest_normal() > 0.0F);
}

TEST(denormals_are_kept_inside_a_part_that_asks_for_it) {
  widedeep::parallel_for(8, 4, [](std::int64_t, std::int64_t, int) {
    {
      const widedeep::ScopedKeepDenormals keep;
      CHECK(half_of_smallest_normal() > 0.0F);
    }
    CHECK(half_of_smallest_normal() == 0.0F);
  });
}

TEST(denormals_are_zero_in_every_part_and_the_caller_keeps_its_mode) {
  for (const int n_threads : {1, 4}) {
    widedeep::parallel_for(8, n_threads, [](std::int64_t, std::int64_t, int) {
      CHECK(half_of_smallest_normal() == 0.0F);
    });
    CHECK(half_of_smallest_normal() > 0.0F);
  }
}
