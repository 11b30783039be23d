#include "thread_pool.hpp"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>

#include "flush_to_zero.hpp"

namespace widedeep {
namespace {

thread_local bool t_inside_part = false;

// One call of run_parts; lives on the caller's stack until all of its parts are done.
struct Job {
  std::int64_t n_tasks;
  int n_parts;
  PartFunction function;
  void* context;
  int claimed = 0;
  int done = 0;
  std::exception_ptr error = nullptr;
  Job* next = nullptr;
  std::condition_variable finished{};
};

void run_one(const Job& job, int part) {
  const TaskRange range = task_range(job.n_tasks, job.n_parts, part);
  job.function(job.context, range.begin, range.end, part);
}

class Pool {
 public:
  void run(Job& job) {
    std::unique_lock lock(mutex_);
    grow_to(job.n_parts - 1);
    append(job);
    for (int waiting = std::min(job.n_parts - 1, workers_.load()); waiting > 0; --waiting) {
      work_.notify_one();
    }
    while (job.claimed < job.n_parts) run_claimed(job, lock);
    job.finished.wait(lock, [&job] { return job.done == job.n_parts; });
  }

  int workers() const noexcept { return workers_.load(); }

 private:
  void grow_to(int wanted) {
    while (workers_.load() < wanted) {
      // Where the system refuses another thread, those there are (at least the caller) do the work.
      try {
        std::thread([this] { serve(); }).detach();
      } catch (const std::system_error&) {
        return;
      }
      workers_.fetch_add(1);
    }
  }

  void append(Job& job) {
    Job** end = &head_;
    while (*end != nullptr) end = &(*end)->next;
    *end = &job;
  }

  // Takes the next part of `job`, runs it unlocked, counts it. `lock` is held before and after.
  void run_claimed(Job& job, std::unique_lock<std::mutex>& lock) {
    const int part = job.claimed++;
    if (job.claimed == job.n_parts) remove(job);
    lock.unlock();
    std::exception_ptr error = nullptr;
    try {
      run_one(job, part);
    } catch (...) {
      error = std::current_exception();
    }
    lock.lock();
    if (error && !job.error) job.error = error;
    // Under the lock: once it is released the caller may return, and the job be gone.
    if (++job.done == job.n_parts) job.finished.notify_one();
  }

  void remove(const Job& job) {
    Job** link = &head_;
    while (*link != &job) link = &(*link)->next;
    *link = job.next;
  }

  void serve() {
    t_inside_part = true;
    const ScopedFlushToZero flush;
    std::unique_lock lock(mutex_);
    for (;;) {
      work_.wait(lock, [this] { return head_ != nullptr; });
      run_claimed(*head_, lock);
    }
  }

  std::mutex mutex_;
  std::condition_variable work_;
  Job* head_ = nullptr;  // jobs that still have a part to claim, oldest first
  std::atomic<int> workers_{0};
};

// Never deleted: its threads sleep in it until the process ends. After fork() the child has none of
// them, so it forgets the parent's pool (whose mutex may be held) and makes a new one when needed.
std::atomic<Pool*> g_pool{nullptr};

void forget_pool_in_child() {
  g_pool.store(nullptr);
  t_inside_part = false;
}

Pool& pool() {
  Pool* current = g_pool.load();
  if (current != nullptr) return *current;
  static std::atomic<bool> registered{false};
  if (!registered.exchange(true)) pthread_atfork(nullptr, nullptr, forget_pool_in_child);
  Pool* fresh = new Pool;
  if (g_pool.compare_exchange_strong(current, fresh)) return *fresh;
  delete fresh;
  return *current;
}

}  // namespace

void run_parts(std::int64_t n_tasks, int n_parts, PartFunction function, void* context) {
  Job job{n_tasks, n_parts, function, context};
  const ScopedFlushToZero flush;
  if (n_parts == 1 || t_inside_part) {
    for (int part = 0; part < n_parts; ++part) run_one(job, part);
    return;
  }
  t_inside_part = true;
  pool().run(job);
  t_inside_part = false;
  if (job.error) std::rethrow_exception(job.error);
}

int pool_workers() noexcept {
  const Pool* current = g_pool.load();
  return current == nullptr ? 0 : current->workers();
}

}  // namespace widedeep
