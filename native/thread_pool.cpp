#include "thread_pool.hpp"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

#include "flush_to_zero.hpp"

namespace widedeep {

// One call of run_parts or one Background; it lives until all of its parts are done.
struct Job {
  std::int64_t n_tasks;
  int n_parts;
  PartFunction function;
  void* context;
  int claimed = 0;
  std::atomic<int> done{0};  // written under the pool's lock
  std::exception_ptr error = nullptr;
  Job* next = nullptr;
  std::condition_variable finished{};
};

namespace {

thread_local bool t_inside_part = false;

std::atomic<int> g_wakefulness{0};

inline void relax() noexcept {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Looks for a while whether `found()`, if threads are to stay awake.
template <class Found>
void look_for(Found found) noexcept {
  using Clock = std::chrono::steady_clock;
  constexpr auto kLookFor = std::chrono::microseconds(100);
  if (g_wakefulness.load(std::memory_order_relaxed) <= 0) return;
  const Clock::time_point end = Clock::now() + kLookFor;
  do {
    for (int i = 0; i < 32; ++i) {
      if (found()) return;
      relax();
    }
  } while (Clock::now() < end);
}

void run_one(const Job& job, int part) {
  const TaskRange range = task_range(job.n_tasks, job.n_parts, part);
  job.function(job.context, range.begin, range.end, part);
}

class Pool {
 public:
  // Lets up to n_workers threads begin.
  void start(Job& job, int n_workers) {
    std::unique_lock lock(mutex_);
    grow_to(n_workers);
    append(job);
    for (int waiting = std::min(n_workers, workers_.load()); waiting > 0; --waiting) {
      work_.notify_one();
    }
  }

  // Does the parts that nobody has begun and waits for the others.
  void finish(Job& job) {
    std::unique_lock lock(mutex_);
    while (job.claimed < job.n_parts) run_claimed(job, lock);
    const auto is_done = [&job] { return job.done.load() == job.n_parts; };
    if (is_done()) return;
    lock.unlock();
    look_for(is_done);
    lock.lock();
    job.finished.wait(lock, is_done);
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
    has_work_.store(true);
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
    has_work_.store(head_ != nullptr);
  }

  void serve() {
    t_inside_part = true;
    const ScopedFlushToZero flush;
    std::unique_lock lock(mutex_);
    for (;;) {
      if (head_ == nullptr) {
        lock.unlock();
        look_for([this] { return has_work_.load(std::memory_order_relaxed); });
        lock.lock();
      }
      work_.wait(lock, [this] { return head_ != nullptr; });
      run_claimed(*head_, lock);
    }
  }

  std::mutex mutex_;
  std::condition_variable work_;
  Job* head_ = nullptr;                // jobs that still have a part to claim, oldest first
  std::atomic<bool> has_work_{false};  // head_ != nullptr, for those without the lock
  std::atomic<int> workers_{0};
};

// Never deleted: its threads sleep in it until the process ends. After fork() the child has none of
// them, so it forgets the parent's pool (whose mutex may be held) and makes a new one when needed.
std::atomic<Pool*> g_pool{nullptr};

void forget_pool_in_child() {
  g_pool.store(nullptr);
  g_wakefulness.store(0);
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
  pool().start(job, n_parts - 1);
  pool().finish(job);
  t_inside_part = false;
  if (job.error) std::rethrow_exception(job.error);
}

Background::Background(std::int64_t n_tasks, int n_parts, int n_workers, PartFunction function,
                       void* context)
    : job_(new Job{n_tasks, n_parts, function, context}) {
  if (n_parts > 0) pool().start(*job_, n_workers);
}

void Background::wait() {
  const std::unique_ptr<Job> job = std::move(job_);
  if (job == nullptr || job->n_parts == 0) return;
  const ScopedFlushToZero flush;
  t_inside_part = true;
  pool().finish(*job);
  t_inside_part = false;
  if (job->error) std::rethrow_exception(job->error);
}

Background::~Background() {
  try {
    wait();
  } catch (...) {
  }
}

void add_wakefulness(int change) noexcept { g_wakefulness.fetch_add(change); }

int pool_workers() noexcept {
  const Pool* current = g_pool.load();
  return current == nullptr ? 0 : current->workers();
}

}  // namespace widedeep
