#include "front_loop.hpp"

#include <algorithm>
#include <cmath>

namespace widedeep {
bool QueueSlots::enter() noexcept {
  const std::int64_t before = inside_.fetch_add(1);
  if (before == 0 && limit_ < 0) busy_since_ = FrontClock::now();
  if (before < kLeast && limit_ < 0) return true;
  if (before < allowed()) return true;
  inside_.fetch_sub(1);
  refused_.fetch_add(1);
  return false;
}

std::int64_t QueueSlots::allowed() const noexcept {
  if (limit_ >= 0) return limit_;
  // Where nothing gets done at all, the time that was measured says nothing.
  const bool is_stuck = FrontClock::now() - busy_since_.load() > max_wait_;
  return is_stuck ? kLeast : measured_.load();
}

void QueueSlots::leave() noexcept {
  if (limit_ < 0) {
    const std::lock_guard lock(mutex_);
    const FrontClock::time_point now = FrontClock::now();
    const double busy_s = std::chrono::duration<double>(now - busy_since_.exchange(now)).count();
    const double kept = std::exp(-busy_s / kMemoryS);
    busy_s_ = busy_s_ * kept + busy_s;
    done_ = done_ * kept + 1;
    const double slots = std::chrono::duration<double>(max_wait_).count() * done_ / busy_s_;
    measured_ =
        std::clamp(static_cast<std::int64_t>(std::min(slots, 1e6)), kLeast, std::int64_t{1} << 16);
  }
  inside_.fetch_sub(1);
}

}  // namespace widedeep

#ifdef __linux__

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <utility>

namespace widedeep {
namespace {

constexpr std::uint64_t kListening = 0;
constexpr std::uint64_t kWake = 1;
constexpr int kEventsAtOnce = 128;
constexpr int kAcceptsAtOnce = 64;
constexpr std::size_t kChunk = 64 << 10;
constexpr std::size_t kKeptRoom = 256 << 10;
constexpr std::chrono::milliseconds kSweepEvery{200};
constexpr int kChunksUnread = 16;

FrontClock::duration seconds(double s) {
  return std::chrono::duration_cast<FrontClock::duration>(std::chrono::duration<double>(s));
}

int checked(int result, const char* what) {
  if (result < 0) throw std::system_error(errno, std::generic_category(), what);
  return result;
}

int watch(int poll, int action, int fd, std::uint64_t id, std::uint32_t events) {
  epoll_event event{};
  event.events = events;
  event.data.u64 = id;
  return epoll_ctl(poll, action, fd, &event);
}

// Says something to a caller that is cut off; a full socket is no reason to wait.
void send_final_response(int socket, const std::string& words) {
  (void)!send(socket, words.data(), words.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
}

// A socket that is closed with unread bytes is reset, and what was said last may be lost with it.
void close_politely(int socket) {
  shutdown(socket, SHUT_WR);
  thread_local char unread[kChunk];
  for (int n = 0; n < kChunksUnread; ++n) {
    if (recv(socket, unread, sizeof unread, MSG_DONTWAIT) <= 0) break;
  }
  close(socket);
}

bool has_unread(int socket) {
  char byte;
  return recv(socket, &byte, 1, MSG_PEEK | MSG_DONTWAIT) > 0;
}

}  // namespace

FrontLoop::FrontLoop(int listening, int handoff_event, FrontOptions options, FrontHandler& handler,
                     QueueSlots& slots)
    : listening_(listening),
      handoff_event_(handoff_event),
      options_(std::move(options)),
      handler_(handler),
      slots_(slots),
      next_sweep_(FrontClock::now()) {
  poll_ = checked(epoll_create1(EPOLL_CLOEXEC), "epoll_create1");
  wake_ = checked(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), "eventfd");
  checked(watch(poll_, EPOLL_CTL_ADD, wake_, kWake, EPOLLIN | EPOLLET), "epoll_ctl");
  reserve_ = open("/dev/null", O_RDONLY | O_CLOEXEC);
  set_accepting(true);
  // Signals are for the threads that were there before.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  try {
    for (int i = 0; i < std::max(options_.threads, 1); ++i) {
      threads_.emplace_back([this, i] { run(i); });
    }
  } catch (...) {  // the system refuses another thread; those that run must end before they go
    stop();
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    throw;
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

FrontLoop::~FrontLoop() {
  stop();
  close(wake_);
  close(poll_);
  if (reserve_ >= 0) close(reserve_);
}

void FrontLoop::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  work_.notify_all();
  wake();
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
  const std::lock_guard lock(mutex_);
  for (const auto& [id, connection] : connections_) close(connection->socket);
  for (const Handoff& handoff : handoffs_) close(handoff.socket);
  connections_.clear();
  handoffs_.clear();
  queue_.clear();
}

void FrontLoop::wake() const noexcept {
  const std::uint64_t one = 1;
  (void)!write(wake_, &one, sizeof one);
}

void FrontLoop::stop_accepting() {
  closing_ = true;
  wake();
}

void FrontLoop::drain() {
  {
    const std::lock_guard lock(mutex_);
    drained_before_ = next_id_;
  }
  ending_ = true;
  draining_ = true;
  wake();
}

std::int64_t FrontLoop::connections_before_drain() const {
  const std::lock_guard lock(mutex_);
  return std::count_if(connections_.begin(), connections_.end(),
                       [&](const auto& entry) { return entry.first < drained_before_; });
}

std::int64_t FrontLoop::connections() const {
  const std::lock_guard lock(mutex_);
  return static_cast<std::int64_t>(connections_.size());
}

std::vector<Handoff> FrontLoop::pop_handoffs() {
  const std::lock_guard lock(mutex_);
  return std::exchange(handoffs_, {});
}

void FrontLoop::return_connection(int socket) {
  elsewhere_.fetch_sub(1);
  if (draining_ || !add(socket, false)) close(socket);
}

void FrontLoop::accept_handoff(int socket) {
  if (!add(socket, true)) close(socket);
}

// ---- threads ------------------------------------------------------------------------------------

void FrontLoop::run(int thread) {
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    if (!queue_.empty()) {
      Connection* const next = queue_.front();
      queue_.pop_front();
      if (waiting_ > 0 && (!queue_.empty() || !collecting_)) work_.notify_one();
      lock.unlock();
      serve(thread, *next);
      lock.lock();
    } else if (!collecting_) {
      collecting_ = true;
      lock.unlock();
      collect();
      lock.lock();
      collecting_ = false;
    } else {
      ++waiting_;
      work_.wait(lock);
      --waiting_;
    }
  }
}

// Waits for the sockets, and puts into the queue what has come whole.
void FrontLoop::collect() {
  epoll_event events[kEventsAtOnce];
  const auto left =
      std::chrono::duration_cast<std::chrono::milliseconds>(next_sweep_ - FrontClock::now());
  const int timeout = static_cast<int>(std::max<std::int64_t>(left.count() + 1, 0));
  const int n = epoll_wait(poll_, events, kEventsAtOnce, timeout);
  Connection* taken[kEventsAtOnce];
  int n_taken = 0;
  bool arrivals = false;
  {
    const std::lock_guard lock(mutex_);
    for (int i = 0; i < n; ++i) {
      const std::uint64_t id = events[i].data.u64;
      arrivals = arrivals || id == kListening;
      if (id == kWake) next_sweep_ = {};
      const auto found = connections_.find(id);
      if (found == connections_.end()) continue;
      Connection& connection = *found->second;
      const bool hung_up = (events[i].events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0;
      connection.hung_up = connection.hung_up || hung_up;
      connection.pending = true;
      if (connection.owned) continue;
      connection.owned = true;
      take_news(connection);
      taken[n_taken++] = &connection;
    }
  }
  for (int i = 0; i < n_taken; ++i) proceed(*taken[i]);
  if (arrivals) accept_some();
  if (FrontClock::now() >= next_sweep_) sweep();
}

void FrontLoop::set_accepting(bool accepts) {
  if (accepts == accepts_) return;
  accepts_ = accepts;
  watch(poll_, accepts ? EPOLL_CTL_ADD : EPOLL_CTL_DEL, listening_, kListening, EPOLLIN);
}

void FrontLoop::accept_some() {
  for (int i = 0; i < kAcceptsAtOnce; ++i) {
    const int socket = accept4(listening_, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (socket < 0) {
      const bool is_table_full = errno == EMFILE || errno == ENFILE;
      const bool is_memory_short = errno == ENOMEM || errno == ENOBUFS;
      if (is_table_full && refuse_one()) continue;
      // Without room for another one the socket would go on telling of it: look again later.
      if (is_table_full || is_memory_short) set_accepting(false);
      return;
    }
    const int on = 1;
    setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (connections() + elsewhere_ >= options_.max_connections) {
      endings_.full.fetch_add(1);
      refuse(socket);
    } else if (!add(socket, true)) {
      close(socket);
    }
  }
}

// Takes one that waits by the descriptor that is kept for this; false if that is gone, too.
bool FrontLoop::refuse_one() {
  if (reserve_ < 0) reserve_ = open("/dev/null", O_RDONLY | O_CLOEXEC);
  if (reserve_ < 0) return false;
  close(reserve_);
  const int socket = accept4(listening_, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
  if (socket >= 0) {
    endings_.no_descriptor.fetch_add(1);
    refuse(socket);
  }
  reserve_ = open("/dev/null", O_RDONLY | O_CLOEXEC);
  return socket >= 0;
}

void FrontLoop::refuse(int socket) {
  send_final_response(socket, options_.full);
  close_politely(socket);
}

bool FrontLoop::add(int socket, bool fresh) {
  auto made = std::make_unique<Connection>();
  made->socket = socket;
  made->fresh = fresh;
  made->phase = fresh ? Phase::head : Phase::idle;
  made->deadline = FrontClock::now() + seconds(fresh ? options_.head_s : options_.idle_s);
  const std::lock_guard lock(mutex_);
  if (stopping_) return false;
  made->id = next_id_++;
  const std::uint32_t events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET;
  if (watch(poll_, EPOLL_CTL_ADD, socket, made->id, events) != 0) return false;
  connections_.emplace(made->id, std::move(made));
  return true;
}

void FrontLoop::serve(int thread, Connection& connection) {
  const bool answered = handler_.answer(thread, connection.request, connection.out);
  slots_.leave();
  in_flight_.fetch_sub(1);
  if (!answered) return hand_over(connection);
  finish_request(connection);
  proceed(connection);
}

// ---- a connection, by the thread that owns it ---------------------------------------------------

void FrontLoop::proceed(Connection& connection) {
  for (;;) {
    switch (next_step(connection)) {
      case Next::hand_over:
        return hand_over(connection);
      case Next::close:
        return close_connection(connection);
      case Next::serve:
        if (slots_.enter()) {
          in_flight_.fetch_add(1);
          const std::lock_guard lock(mutex_);
          queue_.push_back(&connection);
          return;
        }
        handler_.refuse(connection.request, connection.out);
        finish_request(connection);
        break;
      case Next::wait:
        if (release(connection)) return;
    }
  }
}

FrontLoop::Next FrontLoop::next_step(Connection& connection) {
  if (!write_out(connection)) return Next::close;
  if (!connection.out.empty()) {
    wait_in(connection, Phase::write);
    return Next::wait;
  }
  if (connection.last) return Next::close;
  for (;;) {
    const Next next = look(connection);
    if (next != Next::wait || !connection.readable) return next;
    if (!receive(connection)) return Next::close;
  }
}

// What to do about the bytes that have come.
FrontLoop::Next FrontLoop::look(Connection& connection) {
  const std::string_view bytes = std::string_view(connection.in).substr(connection.done);
  FrontRequest& request = connection.request;
  if (connection.request_length == 0) {
    if (bytes.empty()) {
      wait_in(connection, connection.fresh ? Phase::head : Phase::idle);
      return Next::wait;
    }
    const HeadResult found = read_head(bytes, request.head);
    if (found.status == HeadStatus::unusual) return Next::hand_over;
    if (found.status == HeadStatus::more) {
      wait_in(connection, Phase::head);
      return Next::wait;
    }
    if (request.head.traced && options_.hands_over_traced) return Next::hand_over;
    if (request.head.body_length > options_.longest_body || !handler_.knows(request)) {
      return Next::hand_over;
    }
    request.arrived = FrontClock::now();
    connection.head_length = static_cast<std::size_t>(found.length);
    connection.request_length =
        connection.head_length + static_cast<std::size_t>(request.head.body_length);
    if (bytes.size() < connection.request_length) {
      connection.in.reserve(connection.done + connection.request_length);
    }
  } else if (bytes.size() >= connection.request_length) {
    read_head(bytes, request.head);  // the bytes may have moved since
  }
  if (bytes.size() < connection.request_length) {
    wait_in(connection, Phase::body);
    return Next::wait;
  }
  request.body =
      bytes.substr(connection.head_length, connection.request_length - connection.head_length);
  request.last = request.head.close || ending_;
  return handler_.admits(request) ? Next::serve : Next::hand_over;
}

void FrontLoop::finish_request(Connection& connection) {
  connection.done += connection.request_length;
  connection.request_length = 0;
  connection.fresh = false;
  connection.phase = Phase::idle;
  connection.last = connection.request.last;
  if (connection.done < connection.in.size()) return;
  connection.in.clear();
  connection.done = 0;
  if (connection.in.capacity() > kKeptRoom) connection.in.shrink_to_fit();
}

void FrontLoop::wait_in(Connection& connection, Phase phase) {
  const bool goes_on = phase == connection.phase && phase != Phase::idle;
  if (goes_on) return;
  const double allowed = phase == Phase::idle   ? options_.idle_s
                         : phase == Phase::head ? options_.head_s
                         : phase == Phase::body ? options_.body_s
                                                : options_.write_s;
  connection.phase = phase;
  connection.deadline = FrontClock::now() + seconds(allowed);
}

// False if the connection is broken.
bool FrontLoop::receive(Connection& connection) {
  if (connection.done > kChunk) {
    connection.in.erase(0, connection.done);
    connection.done = 0;
  }
  thread_local char chunk[kChunk];
  const ssize_t n = recv(connection.socket, chunk, sizeof chunk, 0);
  if (n < 0) {
    connection.readable = errno == EINTR;
    return errno == EINTR || errno == EAGAIN || errno == EWOULDBLOCK;
  }
  // After the last bytes there is the end to be read.
  connection.readable = n == static_cast<ssize_t>(sizeof chunk) || connection.ended;
  connection.in.append(chunk, static_cast<std::size_t>(n));
  return n > 0;
}

// False if the connection is broken.
bool FrontLoop::write_out(Connection& connection) {
  while (connection.written < connection.out.size()) {
    const ssize_t n = send(connection.socket, connection.out.data() + connection.written,
                           connection.out.size() - connection.written, MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno == EAGAIN || errno == EWOULDBLOCK;
    connection.written += static_cast<std::size_t>(n);
  }
  connection.out.clear();
  connection.written = 0;
  if (connection.out.capacity() > kKeptRoom) connection.out.shrink_to_fit();
  return true;
}

// With the lock held: tells the owner what has come.
void FrontLoop::take_news(Connection& connection) {
  connection.readable = connection.readable || connection.pending;
  connection.ended = connection.hung_up;
  connection.pending = false;
}

// False if something came meanwhile: there is more to do.
bool FrontLoop::release(Connection& connection) {
  const std::lock_guard lock(mutex_);
  connection.owned = connection.pending;
  take_news(connection);
  return !connection.owned;
}

void FrontLoop::hand_over(Connection& connection) {
  watch(poll_, EPOLL_CTL_DEL, connection.socket, 0, 0);
  {
    const std::lock_guard lock(mutex_);
    handoffs_.push_back({connection.socket, connection.in.substr(connection.done)});
    connections_.erase(connection.id);
    elsewhere_.fetch_add(1);
  }
  const std::uint64_t one = 1;
  (void)!write(handoff_event_, &one, sizeof one);
}

void FrontLoop::close_connection(Connection& connection) {
  close_politely(connection.socket);
  const std::lock_guard lock(mutex_);
  connections_.erase(connection.id);
}

// Ends what took too long, and, when draining, what is idle.
void FrontLoop::sweep() {
  const FrontClock::time_point now = FrontClock::now();
  next_sweep_ = now + std::min<FrontClock::duration>(kSweepEvery, seconds(options_.head_s) / 4);
  if (closing_ && accepts_) accept_some();  // those who connected in time
  set_accepting(!closing_);
  std::vector<Connection*> ended;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [id, connection] : connections_) {
      if (connection->owned || !is_over(*connection, now)) continue;
      connection->owned = true;
      ended.push_back(connection.get());
    }
  }
  for (Connection* connection : ended) {
    if (connection->deadline < now) end_late(*connection);
    close_connection(*connection);
  }
}

// Whether its time is over, or the server's and it asks for nothing.
bool FrontLoop::is_over(const Connection& connection, FrontClock::time_point now) const {
  if (connection.deadline < now) return true;
  const bool is_silent = connection.phase == Phase::head && connection.in.empty();
  if (!draining_ || !(connection.phase == Phase::idle || is_silent)) return false;
  // Who has just connected is about to ask.
  const bool is_new =
      connection.fresh && now < connection.deadline - seconds(options_.head_s) + kSweepEvery;
  const bool is_due = connection.id < drained_before_ || closing_;
  return is_due && !is_new && !has_unread(connection.socket);
}

void FrontLoop::end_late(Connection& connection) {
  switch (connection.phase) {
    case Phase::idle:
      endings_.idle.fetch_add(1);
      break;
    case Phase::head:
      endings_.late_head.fetch_add(1);
      send_final_response(connection.socket, options_.late_head);
      break;
    case Phase::body:
      endings_.late_body.fetch_add(1);
      send_final_response(connection.socket, options_.late_body);
      break;
    case Phase::write:
      endings_.unread_answer.fetch_add(1);
      break;
  }
}

}  // namespace widedeep

#endif
