#include "gru.hpp"

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <vector>

#include "thread_pool.hpp"

namespace widedeep {
namespace {

std::size_t as_size(int64_t n) { return static_cast<std::size_t>(n); }

int64_t up_to_line(int64_t n) { return (n + 15) / 16 * 16; }

// Rows by their number of events, the longest first, and a weight packed for products with states
// (forward) or with gates' gradients.
class Plan {
 public:
  Plan(const Gru& request, bool backward) : width_(request.width) {
    const int64_t rows = request.rows;
    firsts_.assign(as_size(rows + 1), 0);
    for (int64_t row = 0; row < rows; ++row) {
      const uint8_t* const mask = request.mask + row * request.steps;
      firsts_[as_size(row + 1)] =
          firsts_[as_size(row)] + std::accumulate(mask, mask + request.steps, int64_t{0});
    }
    order_.resize(as_size(rows));
    std::iota(order_.begin(), order_.end(), int64_t{0});
    const auto length = [&](int64_t row) {
      return firsts_[as_size(row + 1)] - firsts_[as_size(row)];
    };
    std::stable_sort(order_.begin(), order_.end(),
                     [&](int64_t a, int64_t b) { return length(a) > length(b); });
    pack(request.state_weight, backward);
  }

  template <class Fn>
  void over_parts(int threads, Fn&& part) const {
    const int64_t rows = static_cast<int64_t>(order_.size());
    const int64_t parts = (rows + kGruRows - 1) / kGruRows;
    parallel_for(parts, threads, [&](int64_t begin, int64_t end, int) {
      std::vector<float> room(as_size(gru_room(width_)));
      for (int64_t i = begin; i < end; ++i) {
        const int64_t first = i * kGruRows;
        part(GruPart{order_.data() + first, firsts_.data(), std::min(kGruRows, rows - first),
                     panels_.data(), room.data()});
      }
    });
  }

 private:
  void pack(const float* weight, bool backward) {
    const int64_t inputs = backward ? 3 * width_ : width_;
    const int64_t outputs = backward ? width_ : 3 * width_;
    const int64_t panel = WIDEDEEP_DISPATCH(tower_panel)();
    const int64_t panels = (outputs + panel - 1) / panel;
    panels_.assign(as_size(panels * panel * inputs), 0.0f);
    WIDEDEEP_DISPATCH(pack_panels)
    (weight, backward ? width_ : 1, backward ? 1 : width_, inputs, outputs, panels_.data(), 0,
     panels);
  }

  int64_t width_;
  std::vector<int64_t> firsts_{};
  std::vector<int64_t> order_{};
  std::vector<float> panels_{};
};

}  // namespace

int64_t gru_room(int64_t width) {
  // States, products (or gates' gradients), and the products' own room
  return kGruRows * (2 * up_to_line(width) + 2 * up_to_line(3 * width));
}

void gru(const Gru& request, int threads) {
  const Plan plan(request, false);
  plan.over_parts(threads,
                  [&](const GruPart& part) { WIDEDEEP_DISPATCH(gru_part)(request, part); });
}

void gru_grad(const Gru& request, const GruGrad& grad, int threads) {
  const Plan plan(request, true);
  plan.over_parts(
      threads, [&](const GruPart& part) { WIDEDEEP_DISPATCH(gru_grad_part)(request, grad, part); });
}

}  // namespace widedeep
