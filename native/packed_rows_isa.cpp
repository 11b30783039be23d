// Rows of a packed table, unpacked.
#include "packed_rows_isa.hpp"

namespace widedeep::WIDEDEEP_ISA_NAMESPACE {

void unpack_range(const PackedRows& table, const int64_t* rows, int64_t begin, int64_t end,
                  const Rows& out) {
  for (int64_t i = begin; i < end; ++i) unpack_row(table, rows[i], out.data + i * out.stride);
}

}  // namespace widedeep::WIDEDEEP_ISA_NAMESPACE
