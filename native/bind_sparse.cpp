// The sparse kernels for Python: pointers out of arrays, nothing else. Types, shapes and lengths
// are checked in widedeep.kernels, whose functions are the public ones.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include <optional>

#include "sparse.hpp"

namespace nb = nanobind;

namespace widedeep {
namespace {

template <class T>
using Array = nb::ndarray<T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Matrix = nb::ndarray<float, nb::ndim<2>, nb::device::cpu>;
using ConstMatrix = nb::ndarray<const float, nb::ndim<2>, nb::device::cpu>;
template <class T>
using Maybe = std::optional<Array<T>>;
using ReleaseGil = nb::call_guard<nb::gil_scoped_release>;

template <class T>
T* pointer(const Maybe<T>& array) {
  return array ? array->data() : nullptr;
}

int64_t length(const auto& array) { return static_cast<int64_t>(array.shape(0)); }

Rows rows_of(const Matrix& array) {
  return {array.data(), array.stride(0), static_cast<int64_t>(array.shape(1))};
}

ConstRows rows_of(const ConstMatrix& array) {
  return {array.data(), array.stride(0), static_cast<int64_t>(array.shape(1))};
}

CsrBatch batch_of(const Array<const int64_t>& ids, const Array<const int64_t>& offsets,
                  const Maybe<const float>& values, int64_t n_features) {
  return {ids.data(),
          offsets.data(),
          pointer(values),
          length(ids),
          n_features == 0 ? 0 : (length(offsets) - 1) / n_features,
          n_features};
}

int64_t bind_group_ids(const Array<const int64_t>& ids, const Array<const int64_t>& offsets,
                       int64_t n_features, const Array<const int32_t>& slots,
                       const Array<const int32_t>& tables, const Array<const int64_t>& bases,
                       const Array<const int64_t>& sizes, const Array<int64_t>& rows,
                       const Array<int64_t>& table_starts, const Array<int32_t>& starts,
                       const Array<int32_t>& order, const Array<int32_t>& cells, int threads) {
  const GroupRequest request = {batch_of(ids, offsets, std::nullopt, n_features),
                                slots.data(),
                                tables.data(),
                                length(slots),
                                bases.data(),
                                sizes.data(),
                                length(bases)};
  return group_ids(request,
                   {rows.data(), table_starts.data(), starts.data(), order.data(), cells.data()},
                   threads);
}

int64_t bind_gather_pool(const ConstMatrix& weights, const Array<const int64_t>& ids,
                         const Array<const int64_t>& offsets, const Maybe<const float>& values,
                         int64_t n_features, const Array<const int32_t>& slots,
                         const Array<const int64_t>& bases, const Array<const int64_t>& sizes,
                         const Array<const int8_t>& combiners, const Matrix& out,
                         const Array<const int64_t>& columns, int threads) {
  return gather_pool(
      {batch_of(ids, offsets, values, n_features),
       {slots.data(), bases.data(), sizes.data(), combiners.data(), columns.data(), length(slots)},
       rows_of(weights),
       rows_of(out)},
      threads);
}

int64_t bind_wide_forward(const ConstMatrix& weights, const Array<const int64_t>& ids,
                          const Array<const int64_t>& offsets, const Maybe<const float>& values,
                          int64_t n_features, const Array<const int32_t>& slots,
                          const Array<const int64_t>& bases, const Array<const int64_t>& sizes,
                          const Array<const int8_t>& combiners, const Matrix& logits, int threads) {
  return wide_forward(
      {batch_of(ids, offsets, values, n_features),
       {slots.data(), bases.data(), sizes.data(), combiners.data(), nullptr, length(slots)},
       rows_of(weights),
       rows_of(logits)},
      threads);
}

int64_t bind_cell_scales(const Array<const int64_t>& ids, const Array<const int64_t>& offsets,
                         const Maybe<const float>& values, int64_t n_features,
                         const Array<const int32_t>& slots, const Array<const int8_t>& combiners,
                         const Array<float>& scale, int threads) {
  return cell_scales(batch_of(ids, offsets, values, n_features),
                     {slots.data(), nullptr, nullptr, combiners.data(), nullptr, length(slots)},
                     scale.data(), threads);
}

void bind_segment_sum(const ConstMatrix& grad, const Array<const int32_t>& starts,
                      const Array<const int32_t>& order, const Array<const int32_t>& cells,
                      int64_t n_features, const Array<const int64_t>& column_of_feature,
                      const Maybe<const float>& scale_of_cell, const Maybe<const float>& values,
                      const Maybe<const int64_t>& sequence_place, const ConstMatrix& sequence_grad,
                      const Matrix& out, int threads) {
  segment_sum({starts.data(), order.data(), cells.data(), length(starts) - 1, n_features,
               column_of_feature.data(), pointer(scale_of_cell), pointer(values), rows_of(grad),
               pointer(sequence_place), rows_of(sequence_grad), rows_of(out)},
              threads);
}

RowGradients gradients_of(const Maybe<const int64_t>& rows, const ConstMatrix& grads,
                          double grad_scale) {
  return {pointer(rows), length(grads), rows_of(grads), static_cast<float>(grad_scale)};
}

void bind_sgd_rows(const Matrix& weights, const Maybe<const int64_t>& rows,
                   const ConstMatrix& grads, double lr, double grad_scale, int threads) {
  sgd_rows({gradients_of(rows, grads, grad_scale), rows_of(weights), static_cast<float>(lr)},
           threads);
}

void bind_adagrad_rows(const Matrix& weights, const Matrix& accumulator,
                       const Maybe<const int64_t>& rows, const ConstMatrix& grads, double lr,
                       double eps, double l2, double grad_scale, int threads) {
  adagrad_rows({gradients_of(rows, grads, grad_scale), rows_of(weights), rows_of(accumulator),
                static_cast<float>(lr), static_cast<float>(eps), static_cast<float>(l2)},
               threads);
}

void bind_adam_rows(const Matrix& weights, const Matrix& mean, const Matrix& square,
                    const Maybe<const int64_t>& rows, const ConstMatrix& grads, double step_size,
                    double beta1, double beta2, double eps, double decay, double grad_scale,
                    int threads) {
  adam_rows({gradients_of(rows, grads, grad_scale), rows_of(weights), rows_of(mean),
             rows_of(square), static_cast<float>(step_size), static_cast<float>(beta1),
             static_cast<float>(1.0 - beta1), static_cast<float>(beta2),
             static_cast<float>(1.0 - beta2), static_cast<float>(eps), static_cast<float>(decay)},
            threads);
}

int64_t bind_ftrl_rows(const Matrix& weights, const Matrix& z, const Matrix& n,
                       const Maybe<const int64_t>& rows, const ConstMatrix& grads, double lr,
                       double l1, double l2, double beta, double lr_power, double shrinkage,
                       double grad_scale, const Maybe<const float>& rates,
                       const Maybe<float>& products, int threads) {
  return ftrl_rows({gradients_of(rows, grads, grad_scale), rows_of(weights), rows_of(z), rows_of(n),
                    static_cast<float>(1.0 / lr), static_cast<float>(l1), static_cast<float>(l2),
                    static_cast<float>(beta), static_cast<float>(lr_power),
                    static_cast<float>(shrinkage), pointer(rates), pointer(products)},
                   threads);
}

void bind_init_rows(const Matrix& out, uint64_t key, int64_t first_row, double scale, int threads) {
  init_rows({rows_of(out), key, first_row, static_cast<float>(scale)}, length(out), threads);
}

int64_t bind_take_offsets(const Array<const int64_t>& ids, const Array<const int64_t>& offsets,
                          int64_t n_features, const Array<const int64_t>& rows,
                          const Array<int64_t>& out_offsets) {
  return take_offsets(batch_of(ids, offsets, std::nullopt, n_features), rows.data(), length(rows),
                      out_offsets.data());
}

void bind_take_ids(const Array<const int64_t>& ids, const Array<const int64_t>& offsets,
                   const Maybe<const float>& values, int64_t n_features,
                   const Array<const int64_t>& rows, const Array<const int64_t>& out_offsets,
                   const Array<int64_t>& out_ids, const Maybe<float>& out_values, int threads) {
  take_ids(batch_of(ids, offsets, values, n_features), rows.data(), length(rows),
           out_offsets.data(), out_ids.data(), pointer(out_values), threads);
}

void bind_take_dense(const Array<const uint8_t>& in, const Array<const int64_t>& rows,
                     int64_t row_bytes, const Array<uint8_t>& out, int threads) {
  take_dense(reinterpret_cast<const char*>(in.data()), rows.data(), length(rows), row_bytes,
             reinterpret_cast<char*>(out.data()), threads);
}

}  // namespace

void bind_sparse(nb::module_& m) {
  m.def("group_ids", &bind_group_ids, ReleaseGil());
  m.def("gather_pool", &bind_gather_pool, nb::arg(), nb::arg(), nb::arg(), nb::arg().none(),
        nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(),
        ReleaseGil());
  m.def("wide_forward", &bind_wide_forward, nb::arg(), nb::arg(), nb::arg(), nb::arg().none(),
        nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), ReleaseGil());
  m.def("cell_scales", &bind_cell_scales, nb::arg(), nb::arg(), nb::arg().none(), nb::arg(),
        nb::arg(), nb::arg(), nb::arg(), nb::arg(), ReleaseGil());
  m.def("segment_sum", &bind_segment_sum, nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(),
        nb::arg(), nb::arg().none(), nb::arg().none(), nb::arg().none(), nb::arg(), nb::arg(),
        nb::arg(), ReleaseGil());
  m.def("sgd_rows", &bind_sgd_rows, nb::arg(), nb::arg().none(), nb::arg(), nb::arg(), nb::arg(),
        nb::arg(), ReleaseGil());
  m.def("adagrad_rows", &bind_adagrad_rows, nb::arg(), nb::arg(), nb::arg().none(), nb::arg(),
        nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), ReleaseGil());
  m.def("adam_rows", &bind_adam_rows, nb::arg(), nb::arg(), nb::arg(), nb::arg().none(), nb::arg(),
        nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), ReleaseGil());
  m.def("ftrl_rows", &bind_ftrl_rows, nb::arg(), nb::arg(), nb::arg(), nb::arg().none(), nb::arg(),
        nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(),
        nb::arg().none(), nb::arg().none(), nb::arg(), ReleaseGil());
  m.def("init_rows", &bind_init_rows, ReleaseGil());
  m.def("take_offsets", &bind_take_offsets, ReleaseGil());
  m.def("take_ids", &bind_take_ids, nb::arg(), nb::arg(), nb::arg().none(), nb::arg(), nb::arg(),
        nb::arg(), nb::arg(), nb::arg().none(), nb::arg(), ReleaseGil());
  m.def("take_dense", &bind_take_dense, ReleaseGil());
}

}  // namespace widedeep
