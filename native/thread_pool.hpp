// A small pool of our own: no OpenMP runtime that would clash with torch's, and safe over fork().
#pragma once

#include <cstdint>
#include <memory>
#include <type_traits>

namespace widedeep {

// The half-open range of tasks that part `part` of `n_parts` does. It depends on these numbers
// alone, so the result of a reduction by parts does not depend on which thread ran which.
struct TaskRange {
  std::int64_t begin;
  std::int64_t end;
};

constexpr TaskRange task_range(std::int64_t n_tasks, int n_parts, int part) noexcept {
  const std::int64_t quotient = n_tasks / n_parts;
  const std::int64_t rest = n_tasks % n_parts;
  const std::int64_t begin = part * quotient + (part < rest ? part : rest);
  return {begin, begin + quotient + (part < rest ? 1 : 0)};
}

using PartFunction = void (*)(void* context, std::int64_t begin, std::int64_t end, int part);

// Runs `function` on every part, on up to `n_parts` threads, the calling one among them.
void run_parts(std::int64_t n_tasks, int n_parts, PartFunction function, void* context);

// Calls fn(begin, end, part) for each of min(n_threads, n_tasks) contiguous ranges of [0, n_tasks)
// and returns when all are done.
//
// Threads start on first use and wait asleep. Calls from several threads share the workers. A call
// from within a part runs its parts one after the other, in order. Denormals are zero inside.
// The first exception of a part is thrown again here, after all parts have ended.
template <class Fn>
void parallel_for(std::int64_t n_tasks, int n_threads, Fn&& fn) {
  if (n_tasks <= 0) return;
  const std::int64_t wanted = n_threads < 1 ? 1 : n_threads;
  const int n_parts = static_cast<int>(wanted < n_tasks ? wanted : n_tasks);
  using Plain = std::remove_reference_t<Fn>;
  run_parts(
      n_tasks, n_parts,
      [](void* context, std::int64_t begin, std::int64_t end, int part) {
        (*static_cast<Plain*>(context))(begin, end, part);
      },
      const_cast<void*>(static_cast<const void*>(&fn)));
}

struct Job;

// Parts that workers do while the calling thread goes on with something else. The function and its
// context must live until wait() has returned. Not for use from within a part.
class Background {
 public:
  // Starts up to n_workers threads on it; with 0, all is left to wait().
  Background(std::int64_t n_tasks, int n_parts, int n_workers, PartFunction function,
             void* context);
  ~Background();  // waits; an exception of a part is then lost
  Background(const Background&) = delete;
  Background& operator=(const Background&) = delete;

  // Does the parts that no worker has begun, and returns when all are done. Throws the first
  // exception of a part; a second call does nothing.
  void wait();

 private:
  std::unique_ptr<Job> job_;
};

// How many worker threads this process has started (0 before the first parallel call).
int pool_workers() noexcept;

// Between add_wakefulness(1) and add_wakefulness(-1), threads that run out of work look for more
// for a tenth of a millisecond before they sleep: a training step has many short parallel parts,
// and waking a thread takes as long as some of them. Scopes may overlap.
void add_wakefulness(int change) noexcept;

}  // namespace widedeep
