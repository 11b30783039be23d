#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "check.hpp"
#include "thread_pool.hpp"

#if defined(__SANITIZE_THREAD__)
constexpr bool kUnderTsan = true;
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
constexpr bool kUnderTsan = true;
#else
constexpr bool kUnderTsan = false;
#endif
#else
constexpr bool kUnderTsan = false;
#endif

using widedeep::parallel_for;
using widedeep::task_range;

namespace {

// 0 + 1 + ... + (n - 1), each task counted by the part that ran it.
std::int64_t parallel_sum(std::int64_t n, int n_threads) {
  std::vector<std::int64_t> partial(static_cast<std::size_t>(n_threads), 0);
  parallel_for(n, n_threads, [&](std::int64_t begin, std::int64_t end, int part) {
    for (std::int64_t i = begin; i < end; ++i) partial[static_cast<std::size_t>(part)] += i;
  });
  std::int64_t total = 0;
  for (const std::int64_t value : partial) total += value;
  return total;
}

}  // namespace

TEST(part_ranges_are_contiguous_and_differ_by_one_at_most) {
  for (std::int64_t n_tasks = 0; n_tasks < 40; ++n_tasks) {
    for (int n_parts = 1; n_parts < 9; ++n_parts) {
      std::int64_t expected_begin = 0;
      for (int part = 0; part < n_parts; ++part) {
        const auto [begin, end] = task_range(n_tasks, n_parts, part);
        CHECK(begin == expected_begin);
        const std::int64_t size = end - begin;
        CHECK(size == n_tasks / n_parts || size == n_tasks / n_parts + 1);
        expected_begin = end;
      }
      CHECK(expected_begin == n_tasks);
    }
  }
}

TEST(every_task_runs_once_whatever_the_thread_count) {
  for (const int n_threads : {1, 2, 3, 7, 16}) {
    for (const std::int64_t n :
         {std::int64_t{0}, std::int64_t{1}, std::int64_t{5}, std::int64_t{1000}}) {
      CHECK(parallel_sum(n, n_threads) == n * (n - 1) / 2);
    }
  }
}

TEST(a_thread_count_below_one_means_the_caller_alone) {
  const auto caller = std::this_thread::get_id();
  int calls = 0;
  parallel_for(10, 0, [&](std::int64_t begin, std::int64_t end, int part) {
    CHECK(std::this_thread::get_id() == caller);
    CHECK(begin == 0 && end == 10 && part == 0);
    ++calls;
  });
  CHECK(calls == 1);
}

TEST(workers_are_kept_between_calls) {
  parallel_sum(100, 4);
  const int workers = widedeep::pool_workers();
  CHECK(workers >= 3);
  for (int i = 0; i < 200; ++i) parallel_sum(100, 4);
  CHECK(widedeep::pool_workers() == workers);
}

TEST(a_nested_call_runs_its_parts_in_order_on_the_same_thread) {
  parallel_for(4, 4, [](std::int64_t, std::int64_t, int) {
    const auto outer = std::this_thread::get_id();
    int next = 0;
    parallel_for(6, 3, [&](std::int64_t, std::int64_t, int part) {
      CHECK(std::this_thread::get_id() == outer);
      CHECK(part == next++);
    });
    CHECK(next == 3);
  });
}

TEST(calls_from_several_threads_share_the_pool) {
  std::vector<std::thread> callers;
  std::atomic<int> right{0};
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([&right, caller] {
      for (int i = 0; i < 100; ++i) {
        const std::int64_t n = 50 + caller * 10 + i;
        if (parallel_sum(n, 3) == n * (n - 1) / 2) ++right;
      }
    });
  }
  for (auto& thread : callers) thread.join();
  CHECK(right == 400);
}

TEST(the_first_exception_comes_back_after_all_parts_ended) {
  std::atomic<int> ended{0};
  std::string message;
  try {
    parallel_for(8, 4, [&](std::int64_t, std::int64_t, int part) {
      ++ended;
      if (part == 2) throw std::runtime_error("part 2");
    });
  } catch (const std::runtime_error& error) {
    message = error.what();
  }
  CHECK(message == "part 2");
  CHECK(ended == 4);
  CHECK(parallel_sum(100, 4) == 4950);
}

TEST(a_forked_child_starts_workers_of_its_own) {
  if (kUnderTsan) return;  // TSan does not follow a fork of a process with threads
  parallel_sum(100, 3);
  const pid_t child = fork();
  if (child == 0) {
    const bool forgot = widedeep::pool_workers() == 0;
    const bool works = parallel_sum(1000, 3) == 499500 && widedeep::pool_workers() == 2;
    _exit(forgot && works ? 0 : 1);
  }
  int status = -1;
  CHECK(waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  CHECK(parallel_sum(100, 3) == 4950);
}

TEST(a_child_forked_while_another_thread_uses_the_pool_is_not_stuck) {
  if (kUnderTsan) return;
  std::atomic<bool> stop{false};
  std::thread busy([&stop] {
    while (!stop) parallel_sum(10000, 3);
  });
  for (int i = 0; i < 20; ++i) {
    const pid_t child = fork();
    if (child == 0) _exit(parallel_sum(1000, 3) == 499500 ? 0 : 1);
    int status = -1;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  }
  stop = true;
  busy.join();
}

TEST(threads_that_stay_awake_do_the_same_work) {
  widedeep::add_wakefulness(1);
  widedeep::add_wakefulness(1);
  for (int round = 0; round < 300; ++round) CHECK(parallel_sum(1000, 3) == 499500);
  widedeep::add_wakefulness(-1);
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 3; ++caller) {
    callers.emplace_back([] {
      for (int round = 0; round < 100; ++round) CHECK(parallel_sum(100, 4) == 4950);
    });
  }
  for (std::thread& caller : callers) caller.join();
  widedeep::add_wakefulness(-1);
  CHECK(parallel_sum(1000, 3) == 499500);
}

TEST(work_in_the_background_is_done_when_wait_returns) {
  struct Sum {
    std::atomic<std::int64_t> total{0};
    static void add(void* context, std::int64_t begin, std::int64_t end, int) {
      for (std::int64_t i = begin; i < end; ++i) static_cast<Sum*>(context)->total += i;
    }
  };
  for (const int workers : {0, 1, 3}) {
    Sum sum;
    widedeep::Background background(1000, 7, workers, &Sum::add, &sum);
    CHECK(parallel_sum(1000, 2) == 499500);  // meanwhile
    background.wait();
    CHECK(sum.total == 499500);
    background.wait();
    CHECK(sum.total == 499500);
  }
  Sum sum;
  {
    const widedeep::Background dropped(1000, 7, 2, &Sum::add, &sum);
  }
  CHECK(sum.total == 499500);
}

TEST(an_exception_in_the_background_reaches_who_waits) {
  const auto fail = [](void*, std::int64_t begin, std::int64_t, int) {
    if (begin == 0) throw std::runtime_error("first part");
  };
  widedeep::Background background(10, 5, 2, fail, nullptr);
  std::string message;
  try {
    background.wait();
  } catch (const std::runtime_error& error) {
    message = error.what();
  }
  CHECK(message == "first part");
}
