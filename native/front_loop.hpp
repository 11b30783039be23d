// The connections of a server: reads requests, has the plain ones answered by threads of its own,
// and hands every connection on which something else comes to the full server (Linux).
//
// One thread at a time waits for the sockets; what has come whole goes into one queue, from which
// all threads take, the waiting one too when it has collected. So a request that finds a thread
// free is read, computed and answered by that thread alone.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <unordered_map>
#include <vector>

#include "api_keys.hpp"
#include "http_head.hpp"

namespace widedeep {

using FrontClock = std::chrono::steady_clock;

// Counts requests that have come whole and are not yet computed; refuses beyond a limit, or, with a
// limit below 0, where one more would wait for longer than `max_wait_s` by the measured time
// between two that are done.
class QueueSlots {
 public:
  explicit QueueSlots(std::int64_t limit, double max_wait_s = 1)
      : limit_(limit),
        max_wait_(std::chrono::duration_cast<FrontClock::duration>(
            std::chrono::duration<double>(max_wait_s))) {}

  bool enter() noexcept;
  void leave() noexcept;
  std::int64_t inside() const noexcept { return inside_.load(); }
  std::int64_t refused() const noexcept { return refused_.load(); }
  // How many may be inside now.
  std::int64_t allowed() const noexcept;

 private:
  static constexpr std::int64_t kLeast = 16;
  static constexpr double kMemoryS = 1;

  const std::int64_t limit_;
  const FrontClock::duration max_wait_;
  std::atomic<std::int64_t> inside_{0};
  std::atomic<std::int64_t> refused_{0};
  std::atomic<std::int64_t> measured_{1024};
  std::atomic<FrontClock::time_point> busy_since_{FrontClock::time_point{}};
  std::mutex mutex_;
  double busy_s_ = 0;  // both fade by e in each second that is busy
  double done_ = 0;
};

// Connections that this side ended or refused, by the reason.
struct FrontEndings {
  std::atomic<std::int64_t> full{0};
  std::atomic<std::int64_t> no_descriptor{0};
  std::atomic<std::int64_t> late_head{0};
  std::atomic<std::int64_t> late_body{0};
  std::atomic<std::int64_t> unread_answer{0};
  std::atomic<std::int64_t> idle{0};
};

struct FrontRequest {
  HttpHead head;
  std::string_view body;
  FrontClock::time_point arrived;        // its head
  std::shared_ptr<const ApiKey> caller;  // null where callers need no key
  bool last = false;                     // of its connection: the answer must say so
};

// What answers. Any thread may call it; it must not throw.
class FrontHandler {
 public:
  virtual ~FrontHandler() = default;
  // Whether requests with this head are answered here at all; notes who calls.
  virtual bool knows(FrontRequest& request) = 0;
  // Whether the caller may ask now; it is counted.
  virtual bool admits(const FrontRequest& request) = 0;
  // Appends the whole answer, with its head; or leaves `out` alone and returns false: the full
  // server must answer.
  virtual bool answer(int thread, const FrontRequest& request, std::string& out) = 0;
  // The answer to a request for which there is no place.
  virtual void refuse(const FrontRequest& request, std::string& out) = 0;
};

struct FrontOptions {
  int threads = 1;
  std::int64_t max_connections = 4096;
  bool hands_over_traced = false;       // the full server makes their spans
  std::int64_t longest_body = 1 << 20;  // the full server reads longer ones
  double head_s = 10;
  double body_s = 10;
  double write_s = 30;
  double idle_s = 75;
  // Whole answers, after which the connection is closed.
  std::string late_head;
  std::string late_body;
  std::string full;
};

// A connection for the full server, with what was read of it and not answered.
struct Handoff {
  int socket;
  std::string bytes;
};

class FrontLoop {
 public:
  // The sockets stay the caller's: one that listens, and an eventfd that is written to when a
  // connection is handed over.
  FrontLoop(int listening, int handoff_event, FrontOptions options, FrontHandler& handler,
            QueueSlots& slots);
  ~FrontLoop();
  FrontLoop(const FrontLoop&) = delete;
  FrontLoop& operator=(const FrontLoop&) = delete;

  std::vector<Handoff> pop_handoffs();
  // The full server has answered, and gives the connection back; the socket is the loop's again.
  void return_connection(int socket);
  // One that the caller has accepted.
  void accept_handoff(int socket);
  // The full server has closed a connection.
  void closed_elsewhere() noexcept { elsewhere_.fetch_sub(1); }

  // Say in each answer that it is the connection's last.
  void announce_end() noexcept { ending_ = true; }
  // Close every connection after its answer, and at once where none is under way; who connects is
  // answered still.
  void drain();
  // Those that were there when draining began.
  std::int64_t connections_before_drain() const;
  // Takes effect a moment later; then the listening socket may be closed.
  void stop_accepting();
  bool is_accepting() const noexcept { return accepts_; }
  // End the threads; connections are cut off.
  void stop();

  std::int64_t connections() const;
  // Requests in the queue or with a thread.
  std::int64_t in_flight() const noexcept { return in_flight_.load(); }
  const FrontEndings& endings() const noexcept { return endings_; }

 private:
  enum class Phase : std::uint8_t { idle, head, body, write };
  enum class Next : std::uint8_t { wait, serve, hand_over, close };
  using Id = std::uint64_t;

  struct Connection {
    Id id = 0;
    int socket = -1;
    bool owned = false;     // by a thread that reads, serves or closes it
    bool pending = false;   // something came while it was owned
    bool hung_up = false;   // the caller sends no more
    bool readable = false;  // the socket may hold more, or its end
    bool ended = false;     // as hung_up, for the owner
    bool fresh = true;      // nothing was asked yet
    bool last = false;      // close after what is to be written
    Phase phase = Phase::head;
    FrontClock::time_point deadline;
    std::string in;
    std::size_t done = 0;  // bytes of `in` that are answered
    std::string out;
    std::size_t written = 0;
    FrontRequest request;  // the next, once its head is whole
    std::size_t head_length = 0;
    std::size_t request_length = 0;  // 0 until the head is whole
  };

  void run(int thread);
  void collect();
  void accept_some();
  bool refuse_one();
  void refuse(int socket);
  bool add(int socket, bool fresh);
  void serve(int thread, Connection& connection);
  void proceed(Connection& connection);
  Next next_step(Connection& connection);
  Next look(Connection& connection);
  bool write_out(Connection& connection);
  bool receive(Connection& connection);
  void finish_request(Connection& connection);
  void wait_in(Connection& connection, Phase phase);
  void hand_over(Connection& connection);
  void close_connection(Connection& connection);
  bool release(Connection& connection);
  static void take_news(Connection& connection);
  bool is_over(const Connection& connection, FrontClock::time_point now) const;
  void end_late(Connection& connection);
  void sweep();
  void set_accepting(bool accepts);
  void wake() const noexcept;

  const int listening_;
  const int handoff_event_;
  const FrontOptions options_;
  FrontHandler& handler_;
  QueueSlots& slots_;
  int poll_ = -1;
  int wake_ = -1;
  int reserve_ = -1;  // a descriptor to refuse a connection with when there is no other
  FrontEndings endings_;
  std::atomic<bool> accepts_{false};
  FrontClock::time_point next_sweep_;  // the waiting thread's alone

  mutable std::mutex mutex_;
  std::condition_variable work_;
  std::unordered_map<Id, std::unique_ptr<Connection>> connections_;
  std::deque<Connection*> queue_;
  std::vector<Handoff> handoffs_;
  Id next_id_ = 2;  // 0 and 1 stand for the listening socket and for waking
  bool collecting_ = false;
  int waiting_ = 0;
  bool stopping_ = false;
  std::atomic<bool> closing_{false};  // no new connections
  std::atomic<bool> ending_{false};
  std::atomic<bool> draining_{false};
  std::atomic<Id> drained_before_{0};
  std::atomic<std::int64_t> in_flight_{0};
  std::atomic<std::int64_t> elsewhere_{0};
  std::vector<std::thread> threads_;
};

}  // namespace widedeep
