// The keys of a server's callers, and their rates.
#pragma once

#include <chrono>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "sha256.hpp"

namespace widedeep {

// `rate` requests a second, with bursts of one second's worth. Any thread may use it.
class TokenBucket {
 public:
  explicit TokenBucket(double rate);

  double rate() const noexcept { return rate_; }
  // Takes a token; 0, or the seconds until the next one.
  double take();
  // Of a request that somebody else counts.
  void put_back();

 private:
  using Clock = std::chrono::steady_clock;

  const double rate_;
  const double capacity_;
  std::mutex mutex_;
  double tokens_;
  Clock::time_point updated_at_ = Clock::now();
};

struct ApiKey {
  std::string name;     // of the caller, for logs
  Sha256Digest digest;  // of the key, which is stored nowhere
  bool is_admin = false;
  std::shared_ptr<TokenBucket> bucket;  // null: no limit
};

class ApiKeys {
 public:
  using List = std::vector<std::shared_ptr<const ApiKey>>;

  void replace(List keys);
  List all() const;
  // Null for an unknown key. The time does not depend on which keys agree, or how far.
  std::shared_ptr<const ApiKey> find(std::string_view offered) const;

 private:
  mutable std::mutex mutex_;
  std::shared_ptr<const List> keys_ = std::make_shared<List>();
};

}  // namespace widedeep
