#include "front_loop.hpp"

#ifdef __linux__

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "check.hpp"

namespace widedeep {
namespace {

// Answers with the body; leaves alone what says so.
class Echo final : public FrontHandler {
 public:
  bool knows(FrontRequest& request) override { return request.head.path == "/echo"; }
  bool admits(const FrontRequest& request) override { return request.body != "too often"; }
  bool answer(int, const FrontRequest& request, std::string& out) override {
    if (request.body == "no") return false;
    out += request.last ? "last:" : "got:";
    out += request.body;
    out += '\n';
    ++answered;
    return true;
  }
  void refuse(const FrontRequest&, std::string& out) override { out += "busy\n"; }

  std::atomic<int> answered{0};
};

int listen_on_loopback(sockaddr_in& at) {
  const int listening = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  at = {};
  at.sin_family = AF_INET;
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  CHECK(bind(listening, reinterpret_cast<sockaddr*>(&at), sizeof at) == 0);
  socklen_t length = sizeof at;
  CHECK(getsockname(listening, reinterpret_cast<sockaddr*>(&at), &length) == 0);
  CHECK(listen(listening, 64) == 0);
  return listening;
}

FrontOptions patient(int threads) {
  FrontOptions options;
  options.threads = threads;
  options.head_s = options.body_s = 60;
  options.late_head = "late head";
  options.late_body = "late body";
  options.full = "full";
  return options;
}

struct Server {
  explicit Server(FrontOptions options, std::int64_t limit = 64)
      : listening(listen_on_loopback(at)),
        handoff_event(eventfd(0, EFD_NONBLOCK)),
        slots(limit),
        loop(listening, handoff_event, std::move(options), echo, slots) {}
  ~Server() {
    loop.stop();
    close(listening);
    close(handoff_event);
  }

  sockaddr_in at;
  int listening;
  int handoff_event;
  QueueSlots slots;
  Echo echo;
  FrontLoop loop;
};

struct Caller {
  explicit Caller(const Server& server) : fd(socket(AF_INET, SOCK_STREAM, 0)) {
    const timeval patience{10, 0};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    CHECK(connect(fd, reinterpret_cast<const sockaddr*>(&server.at), sizeof server.at) == 0);
  }
  ~Caller() { close(fd); }
  Caller(const Caller&) = delete;
  Caller& operator=(const Caller&) = delete;

  void say(const std::string& text) const {
    CHECK(send(fd, text.data(), text.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(text.size()));
  }
  // What comes, until that many bytes or the end.
  std::string hear(std::size_t n) const {
    std::string heard;
    char chunk[256];
    while (heard.size() < n) {
      const ssize_t got = recv(fd, chunk, std::min(sizeof chunk, n - heard.size()), 0);
      if (got <= 0) break;
      heard.append(chunk, static_cast<std::size_t>(got));
    }
    return heard;
  }

  int fd;
};

std::string request(const std::string& body, const std::string& more = "") {
  return "POST /echo HTTP/1.1\r\nhost: x\r\n" + more +
         "content-length: " + std::to_string(body.size()) + "\r\n\r\n" + body;
}

std::vector<Handoff> wait_for_handoffs(Server& server) {
  for (int tries = 0; tries < 1000; ++tries) {
    std::vector<Handoff> handoffs = server.loop.pop_handoffs();
    if (!handoffs.empty()) return handoffs;
    usleep(10'000);
  }
  return {};
}

// The loop lets a connection go just after it has handed it over.
bool comes_to_no_connection(const Server& server) {
  for (int tries = 0; tries < 1000 && server.loop.connections() != 0; ++tries) usleep(1'000);
  return server.loop.connections() == 0;
}

}  // namespace

TEST(requests_of_a_connection_are_answered_in_order) {
  Server server(patient(3));
  const Caller caller(server);
  caller.say(request("a") + request("b") + request("c"));
  CHECK(caller.hear(18) == "got:a\ngot:b\ngot:c\n");
  for (const char byte : request("slow")) caller.say(std::string(1, byte));
  CHECK(caller.hear(9) == "got:slow\n");
  caller.say(request("z", "connection: close\r\n"));
  CHECK(caller.hear(100) == "last:z\n");
}

TEST(a_caller_that_sends_no_more_is_answered_and_let_go) {
  Server server(patient(2));
  for (int round = 0; round < 50; ++round) {
    const Caller caller(server);
    caller.say(request("a") + request("b") + (round % 2 == 0 ? "" : "POST /e"));
    CHECK(shutdown(caller.fd, SHUT_WR) == 0);
    CHECK(caller.hear(100) == "got:a\ngot:b\n");
  }
}

TEST(many_callers_are_answered_by_several_threads) {
  Server server(patient(3));
  std::vector<std::thread> callers;
  for (int n = 0; n < 4; ++n) {
    callers.emplace_back([&server, n] {
      const Caller caller(server);
      for (int i = 0; i < 200; ++i) {
        const std::string body = std::to_string(1000 * n + i) + std::string(50, 'x');
        caller.say(request(body) + request(body));
        const std::string answer = "got:" + body + "\n";
        CHECK(caller.hear(2 * answer.size()) == answer + answer);
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  CHECK(server.echo.answered == 1600);
  CHECK(server.slots.inside() == 0 && server.loop.in_flight() == 0);
}

TEST(what_is_not_plain_is_handed_over_with_its_bytes) {
  Server server(patient(2));
  for (const std::string& strange :
       {std::string("GET / HTTP/1.1\r\n\r\n"), request("no"),
        std::string("POST /else HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n")}) {
    const Caller caller(server);
    caller.say(request("a") + strange);
    CHECK(caller.hear(6) == "got:a\n");
    const std::vector<Handoff> handoffs = wait_for_handoffs(server);
    CHECK(handoffs.size() == 1 && handoffs[0].bytes == strange);
    CHECK(comes_to_no_connection(server));
    CHECK(send(handoffs[0].socket, "else\n", 5, 0) == 5);
    CHECK(caller.hear(5) == "else\n");
    // Sent before it is given back: it must not be lost.
    caller.say(request("again"));
    server.loop.return_connection(handoffs[0].socket);
    CHECK(caller.hear(10) == "got:again\n");
  }
}

TEST(beyond_the_limit_requests_are_refused) {
  Server server(patient(1), 0);
  const Caller caller(server);
  caller.say(request("a") + request("b"));
  CHECK(caller.hear(10) == "busy\nbusy\n");
  CHECK(server.slots.refused() == 2);
}

TEST(those_too_many_are_told) {
  FrontOptions options = patient(2);
  options.max_connections = 3;
  Server server(std::move(options));
  const Caller first(server), second(server), third(server);
  while (server.loop.connections() < 3) usleep(1000);
  const Caller one_more(server);
  CHECK(one_more.hear(100) == "full");
}

TEST(late_callers_are_told) {
  FrontOptions options = patient(2);
  options.head_s = options.body_s = 1;
  Server server(std::move(options));
  const Caller silent(server), late(server), slow(server);
  late.say("POST /ec");
  slow.say("POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nab");
  CHECK(silent.hear(100) == "late head");
  CHECK(late.hear(100) == "late head");
  CHECK(slow.hear(100) == "late body");
}

TEST(draining_ends_idle_connections_and_answers_the_others) {
  Server server(patient(2));
  const Caller idle(server), busy(server);
  idle.say(request("a"));
  CHECK(idle.hear(6) == "got:a\n");
  const std::string asked = request("b");
  busy.say(asked.substr(0, asked.size() - 1));
  while (server.loop.connections() < 2) usleep(1000);
  usleep(50'000);
  server.loop.stop_accepting();
  server.loop.drain();
  CHECK(idle.hear(100).empty());
  busy.say("b");
  CHECK(busy.hear(100) == "last:b\n");
  for (int tries = 0; server.loop.connections() != 0 && tries < 1000; ++tries) usleep(5000);
  CHECK(server.loop.connections() == 0);
}

}  // namespace widedeep

#endif
