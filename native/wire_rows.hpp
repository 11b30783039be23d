// Rows on their way between ranks: picked from a matrix into bytes, and put back into one.
#pragma once

#include <stdint.h>

#include "sparse.hpp"

namespace widedeep {

// Writes rows of `matrix`, one after the other, as float32 or rounded to bfloat16.
void pack_rows(const ConstRows& matrix, const int64_t* rows, int64_t n, bool bfloat16,
               uint8_t* bytes, int threads);

// Writes rows of a matrix of bfloat16, `stride` numbers apart, as they are.
void pack_half_rows(const uint16_t* matrix, int64_t stride, int64_t width, const int64_t* rows,
                    int64_t n, uint8_t* bytes, int threads);

// Writes what pack_rows wrote into rows of `matrix`.
void unpack_rows(const uint8_t* bytes, const int64_t* rows, int64_t n, bool bfloat16,
                 const Rows& matrix, int threads);

}  // namespace widedeep
