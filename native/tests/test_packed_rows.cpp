#include <cmath>
#include <vector>

#include "check.hpp"
#include "packed_rows.hpp"

namespace {

using widedeep::ConstRows;
using widedeep::kNoFault;
using widedeep::pack_table;
using widedeep::packed_row_bytes;
using widedeep::PackedRows;
using widedeep::RowKind;
using widedeep::Rows;
using widedeep::unpack_table;

constexpr int64_t kRows = 5;

// Vectors of exactly the bytes that are written and read, for the sanitizers.
TEST(packed_rows_of_any_width_stay_within_their_bytes) {
  for (const RowKind kind : {RowKind::bfloat16, RowKind::int8, RowKind::int4}) {
    for (int64_t width = 0; width < 70; ++width) {
      std::vector<float> table(kRows * width);
      for (size_t i = 0; i < table.size(); ++i) {
        table[i] = static_cast<float>(i * 37 % 101) / 101 - 0.5f;
      }
      const int64_t row_bytes = packed_row_bytes(kind, width);
      std::vector<uint8_t> bytes(kRows * row_bytes);
      const ConstRows rows{table.data(), width, width};
      CHECK(pack_table(rows, kRows, kind, bytes.data(), 2) == kNoFault);
      std::vector<float> back(kRows * width);
      const int64_t order[kRows] = {4, 3, 2, 1, 0};
      const PackedRows packed{bytes.data(), row_bytes, width, kind};
      unpack_table(packed, order, kRows, Rows{back.data(), width, width}, 2);
      const float limit = kind == RowKind::int4 ? 0.04f : 0.0025f;
      for (int64_t row = 0; row < kRows; ++row) {
        for (int64_t d = 0; d < width; ++d) {
          const float moved = back[(kRows - 1 - row) * width + d] - table[row * width + d];
          CHECK(std::fabs(moved) <= limit);
        }
      }
    }
  }
}

TEST(the_first_row_that_no_step_reaches_is_named) {
  const std::vector<float> table = {1.0f, 1e6f, 0.0f, 1e7f};
  std::vector<uint8_t> bytes(8);
  const ConstRows rows{table.data(), 1, 1};
  CHECK(pack_table(rows, 4, RowKind::int8, bytes.data(), 4) == 1);
  CHECK(pack_table(rows, 1, RowKind::int8, bytes.data(), 4) == kNoFault);
}

}  // namespace
