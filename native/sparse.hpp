// The sparse half of a training step: plain structs over the caller's arrays, and the kernels.
//
// A batch is example-major CSR: cell b * F + f holds ids[offsets[b * F + f] ..
// offsets[b * F + f + 1]). Kernels that read ids return the first cell whose offsets or ids are out
// of range, or kNoFault; they check before they touch, so a bad batch can hurt nobody.
#pragma once

#include <stdint.h>

#include "dispatch.hpp"

namespace widedeep {

constexpr int64_t kNoFault = -1;
constexpr int64_t kSingle = -2;  // group_ids: no fault, and every cell holds exactly one id

enum Combiner : int8_t { kSum = 0, kMean = 1, kSqrtN = 2, kMax = 3 };

struct CsrBatch {
  const int64_t* ids;
  const int64_t* offsets;  // n_examples * n_features + 1
  const float* values;     // a weight per id, or null where all are 1
  int64_t n_ids;
  int64_t n_examples;
  int64_t n_features;
  bool single = false;  // known to hold exactly one id in each cell, cell i the i-th
};

// The features that take part in a kernel; one entry a slot, ascending feature index.
struct SlotList {
  const int32_t* features;
  const int64_t* bases;     // first physical row of the slot's table
  const int64_t* sizes;     // rows of the slot's table
  const int8_t* combiners;  // Combiner
  const int64_t* columns;   // where the slot's embedding starts in an output row, or null
  int64_t n;
};

// Rows of `width` floats, `stride` floats apart.
struct ConstRows {
  const float* data;
  int64_t stride;
  int64_t width;
};

struct Rows {
  float* data;
  int64_t stride;
  int64_t width;
};

// A table's weights: float32, or bfloat16 (the upper halves of float32). An update computes in
// float32 and rounds the numbers that it wrote to bfloat16 at random, upwards with the fraction of
// the step between neighbours that was cut off: the mean of many small moves is kept. The bits come
// from a counter (key, row, column), so that they do not depend on threads or ranks.
struct WeightRows {
  WeightRows() = default;
  WeightRows(const Rows& rows) : data(rows.data), stride(rows.stride), width(rows.width) {}

  float* data = nullptr;     // or null: bfloat16
  uint16_t* half = nullptr;  // or null: float32
  int64_t stride = 0;        // numbers
  int64_t width = 0;
  uint64_t key = 0;              // rounding_key
  const int64_t* ids = nullptr;  // by touched row: its number in the counter; or null: the row
};

// The key of an update's random bits; `step` is the update's number.
inline uint64_t rounding_key(uint64_t seed, uint64_t width, uint64_t step) {
  return seed * 0xBF58476D1CE4E5B9ULL + width * 0x94D049BB133111EBULL +
         step * 0xD1B54A32D192ED03ULL;
}

// ---- grouping -----------------------------------------------------------------------------------

// The slots of a table's logical tables, and where these lie. Arrays of the caller.
struct SlotTables {
  const int32_t* features;  // ascending
  const int32_t* tables;    // the logical table of each entry of `features`
  int64_t n_slots;
  const int64_t* bases;  // of each logical table
  const int64_t* sizes;
  int64_t n_tables;
};

struct GroupRequest {
  CsrBatch batch;
  SlotTables tables;
};

// Arrays of the caller: rows, order and cells for n_ids entries, starts for n_ids + 1.
struct GroupOutput {
  int64_t* rows;
  int64_t* table_starts;  // n_tables + 1
  int32_t* starts;
  int32_t* order;
  int32_t* cells;
};

// Whether cell i holds id i and nothing else, for every cell: the common batch, and the fast one.
bool one_id_in_each_cell(const CsrBatch& batch, int threads);

int64_t group_ids(const GroupRequest& request, const GroupOutput& output, int threads);

// ---- forward ------------------------------------------------------------------------------------

struct GatherRequest {
  CsrBatch batch;
  SlotList slots;
  ConstRows weights;
  Rows out;             // one row an example
  bool single = false;  // every cell holds exactly one id (found by gather_pool and wide_forward)
  const uint16_t* half = nullptr;  // bfloat16 weights in the place of weights.data (gather_pool)
};

int64_t gather_pool(const GatherRequest& request, int threads);
int64_t wide_forward(const GatherRequest& request, int threads);

// ---- backward -----------------------------------------------------------------------------------

struct SegmentRequest {
  const int32_t* starts;  // n_rows + 1
  const int32_t* order;
  const int32_t* cells;
  int64_t n_rows;
  int64_t n_features;
  const int64_t* column_of_feature;  // n_features
  const float* scale_of_cell;        // the combiner's divisor, inverted; null where all are 1
  const float* values;               // by occurrence, or null
  ConstRows grad;                    // one row an example; width is that of `out`
  const int64_t* sequence_place;     // by occurrence: its row of `sequence_grad`, or -1; or null
  ConstRows sequence_grad;           // gradient of unpooled rows, taken as it is
  Rows out;                          // one row a unique row
};

void segment_sum(const SegmentRequest& request, int threads);

// How sums over a batch of several lanes are added: those of lanes [a, b) are the sum of the first
// half's, rounded up, and of the second one's; a lane without occurrences of a row adds nothing.
struct LaneSums {
  const int32_t* lane_of_example;  // ascending
  int64_t n_examples;
  int64_t lanes;  // of the whole batch, on all ranks
  bool bfloat16;  // each of these sums is rounded
};

// segment_sum, the occurrences of each lane summed by themselves, the lanes' sums as LaneSums says.
void segment_sum_by_lanes(const SegmentRequest& request, const LaneSums& lanes, int threads);

// Fills scale (n_examples * n_features) for the cells of the listed slots.
int64_t cell_scales(const CsrBatch& batch, const SlotList& slots, float* scale, int threads);

// ---- updates ------------------------------------------------------------------------------------

// Which rows move, and their gradients (times grad_scale). rows == null: every row, in order.
struct RowGradients {
  const int64_t* rows;
  int64_t n;
  ConstRows grads;
  float grad_scale;
};

struct SgdRequest {
  RowGradients gradients;
  WeightRows weights;
  float lr;
};

struct MomentumRequest {
  RowGradients gradients;
  WeightRows weights;
  Rows velocity;
  float lr;
  float momentum;
  bool nesterov;
};

struct RmspropRequest {
  RowGradients gradients;
  WeightRows weights;
  Rows square;
  Rows mean;      // of gradients, or null: not centered
  Rows velocity;  // or null: no momentum
  float decay;
  float one_minus_decay;
  float momentum;
  // One of each pair holds the given number, the other one what changes nothing.
  float eps_in_root;
  float eps_beside_root;
  float lr_of_step;   // of what momentum adds up
  float lr_of_total;  // of its sum
};

struct AdagradRequest {
  RowGradients gradients;
  WeightRows weights;
  Rows accumulator;  // or of width 1: one number a row, of the mean of its squared gradients
  float lr;
  float eps;
  float l2;  // times the weight, added to the gradient
};

struct AdamRequest {
  RowGradients gradients;
  WeightRows weights;
  Rows mean;
  Rows square;
  float lr;  // lr * sqrt(1 - beta2^t) / (1 - beta1^t)
  float beta1;
  float one_minus_beta1;
  float beta2;
  float one_minus_beta2;
  float eps;
  float decay;  // factor of the weight before it moves
};

struct FtrlRequest {
  RowGradients gradients;
  WeightRows weights;
  Rows z;
  Rows n;
  float inverse_lr;
  float l1;
  float l2;
  float beta;
  float lr_power;  // -0.5 takes the square root
  float shrinkage;
  const float* rates = nullptr;  // by touched row: factor of the learning rate; or null
  float* products = nullptr;  // by touched row: gradient times the weight before it moved; or null
};

void sgd_rows(const SgdRequest& request, int threads);
void momentum_rows(const MomentumRequest& request, int threads);
void rmsprop_rows(const RmspropRequest& request, int threads);
void adagrad_rows(const AdagradRequest& request, int threads);
void adam_rows(const AdamRequest& request, int threads);
int64_t ftrl_rows(const FtrlRequest& request, int threads);  // change of the non-zero count

// Rounds rows to bfloat16 as an update does; out.half has the rows of `rows` in order.
void round_rows(const ConstRows& rows, const WeightRows& out, int64_t n, int threads);

enum class RowInit : uint8_t { normal, uniform, truncated_normal };

struct InitRequest {
  Rows out;
  uint64_t key;
  int64_t first_row;
  float scale;
  RowInit init = RowInit::normal;  // nearly
  const int64_t* ids = nullptr;    // of the rows; null: first_row and those after it
};

void init_rows(const InitRequest& request, int64_t n, int threads);

// ---- copying ------------------------------------------------------------------------------------

// Fills out_offsets (n * F + 1) for the examples `rows`; returns the number of ids, or -1
// where offsets go back or point outside.
int64_t take_offsets(const CsrBatch& batch, const int64_t* rows, int64_t n, int64_t* out_offsets);

// Copies the ids (and values, where there are some) of the examples to where out_offsets says.
void take_ids(const CsrBatch& batch, const int64_t* rows, int64_t n, const int64_t* out_offsets,
              int64_t* out_ids, float* out_values, int threads);

WIDEDEEP_DECLARE_ISA(
    int64_t gather_pool_range(const GatherRequest& request, int64_t begin, int64_t end);
    int64_t wide_forward_range(const GatherRequest& request, int64_t begin, int64_t end);
    int64_t cell_scales_range(const CsrBatch& batch, const SlotList& slots, float* scale,
                              int64_t begin, int64_t end);
    void segment_sum_range(const SegmentRequest& request, int64_t begin, int64_t end);
    void sgd_rows_range(const SgdRequest& request, int64_t begin, int64_t end);
    void momentum_rows_range(const MomentumRequest& request, int64_t begin, int64_t end);
    void rmsprop_rows_range(const RmspropRequest& request, int64_t begin, int64_t end);
    void adagrad_rows_range(const AdagradRequest& request, int64_t begin, int64_t end);
    void adam_rows_range(const AdamRequest& request, int64_t begin, int64_t end);
    int64_t ftrl_rows_range(const FtrlRequest& request, int64_t begin, int64_t end);
    void round_rows_range(const ConstRows& rows, const WeightRows& out, int64_t begin, int64_t end);
    void init_rows_range(const InitRequest& request, int64_t begin, int64_t end))

}  // namespace widedeep
