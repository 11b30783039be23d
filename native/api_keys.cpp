#include "api_keys.hpp"

#include <algorithm>
#include <utility>

namespace widedeep {

TokenBucket::TokenBucket(double rate)
    : rate_(rate), capacity_(std::max(1.0, rate)), tokens_(capacity_) {}

double TokenBucket::take() {
  const std::lock_guard lock(mutex_);
  const Clock::time_point now = Clock::now();
  const double passed_s = std::chrono::duration<double>(now - updated_at_).count();
  tokens_ = std::min(capacity_, tokens_ + passed_s * rate_);
  updated_at_ = now;
  if (tokens_ < 1) return (1 - tokens_) / rate_;
  tokens_ -= 1;
  return 0;
}

void TokenBucket::put_back() {
  const std::lock_guard lock(mutex_);
  tokens_ = std::min(capacity_, tokens_ + 1);
}

void ApiKeys::replace(List keys) {
  auto replaced = std::make_shared<const List>(std::move(keys));
  const std::lock_guard lock(mutex_);
  keys_ = std::move(replaced);
}

ApiKeys::List ApiKeys::all() const {
  const std::lock_guard lock(mutex_);
  return *keys_;
}

std::shared_ptr<const ApiKey> ApiKeys::find(std::string_view offered) const {
  const Sha256Digest digest = sha256(offered);
  std::shared_ptr<const List> keys;
  {
    const std::lock_guard lock(mutex_);
    keys = keys_;
  }
  // All bytes of all keys: an early end would tell how far one agrees.
  std::size_t match = keys->size();
  for (std::size_t i = 0; i < keys->size(); ++i) {
    std::uint8_t difference = 0;
    for (std::size_t byte = 0; byte < digest.size(); ++byte) {
      difference =
          static_cast<std::uint8_t>(difference | (digest[byte] ^ (*keys)[i]->digest[byte]));
    }
    match = difference == 0 ? i : match;
  }
  return match == keys->size() ? nullptr : (*keys)[match];
}

}  // namespace widedeep
