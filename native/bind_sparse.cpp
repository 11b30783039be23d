// The sparse kernels for Python: a batch, the slots of a table and the groups of its rows as
// values that are checked when they are made, and the functions over them.
#include "bind_sparse.hpp"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "sparse.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace widedeep {

std::string dtype_name(nb::dlpack::dtype type) {
  const char* const kinds[] = {"int", "uint", "float", "opaque", "bfloat", "complex", "bool"};
  const std::string kind = type.code < 7 ? kinds[type.code] : "other";
  return kind == "bool" ? kind : kind + std::to_string(type.bits);
}

void check_positions(const char* name, const std::int64_t* positions, std::int64_t n,
                     std::int64_t size, const char* what) {
  // The sign of what is below 0 or above the last: no branch, so that it takes little time.
  std::int64_t outside = 0;
  for (std::int64_t i = 0; i < n; ++i) outside |= positions[i] | (size - 1 - positions[i]);
  if (outside < 0) {
    const auto [low, high] = std::minmax_element(positions, positions + n);
    refuse(std::string(name) + ": got " + what + " " + std::to_string(*low) + " to " +
           std::to_string(*high) + ", expected them in [0, " + std::to_string(size) + ")");
  }
}

namespace {

// Says what a kernel stumbled over: offsets that go back, or an id outside its table.
[[noreturn]] void raise_fault(const CsrBatch& batch, const BoundSlots& slots) {
  const std::int64_t n_cells = batch.n_examples * batch.n_features;
  const auto where = [&](std::int64_t cell) {
    return "slot " + std::to_string(cell % batch.n_features) + " of example " +
           std::to_string(cell / batch.n_features);
  };
  for (std::int64_t cell = 0; cell < n_cells; ++cell) {
    const std::int64_t first = batch.offsets[cell], last = batch.offsets[cell + 1];
    if (first < 0 || last < first || last > batch.n_ids) {
      refuse("offsets_BF: " + where(cell) + " spans " + std::to_string(first) + " to " +
             std::to_string(last) + ", expected an ascending span within [0, " +
             std::to_string(batch.n_ids) + "]");
    }
  }
  std::vector<std::int64_t> limits(static_cast<std::size_t>(batch.n_features), -1);
  for (std::size_t s = 0; s < slots.features.size(); ++s) {
    limits[static_cast<std::size_t>(slots.features[s])] = slots.sizes[s];
  }
  for (std::int64_t cell = 0; cell < n_cells; ++cell) {
    const std::int64_t limit = limits[static_cast<std::size_t>(cell % batch.n_features)];
    for (std::int64_t i = batch.offsets[cell]; limit >= 0 && i < batch.offsets[cell + 1]; ++i) {
      const std::int64_t id = batch.ids[i];
      if (id >= 0 && id < limit) continue;
      const nb::object kind =
          nb::module_::import_("widedeep.kernels.sparse").attr("IdOutOfRangeError");
      const nb::object error = kind(cell % batch.n_features, cell / batch.n_features, id, limit);
      PyErr_SetObject(kind.ptr(), error.ptr());
      throw nb::python_error();
    }
  }
  refuse("batch: its arrays changed while a kernel read them");
}

// ---- groups -------------------------------------------------------------------------------------

template <class T>
struct Block {
  std::shared_ptr<T[]> memory;
  std::int64_t first = 0, n = 0;

  static Block make(std::int64_t n) {
    return {std::make_shared_for_overwrite<T[]>(static_cast<std::size_t>(n)), 0, n};
  }
  T* data() const { return memory.get() + first; }
  Block part(std::int64_t begin, std::int64_t end) const {
    return {memory, first + begin, end - begin};
  }
};

struct BoundGroups {
  Block<std::int64_t> rows;                // (U,) physical rows, by logical table
  std::vector<std::int64_t> table_starts;  // (T + 1,) first of each table's rows
  Block<std::int32_t> starts;              // (U + 1,) into order and cells
  Block<std::int32_t> order, cells;        // (occurrences,)
  std::int64_t n_ids, n_cells;
  bool is_single;

  std::int64_t size() const { return rows.n; }
  BoundGroups select(const std::vector<std::int64_t>& tables,
                     const std::vector<std::int64_t>& shifts) const;
  nb::ndarray<nb::numpy, std::int64_t> numbers() const;
};

// The rows of some logical tables, `shifts` further. Neighbours share their occurrences.
BoundGroups BoundGroups::select(const std::vector<std::int64_t>& tables,
                                const std::vector<std::int64_t>& shifts) const {
  BoundGroups chosen{{}, {0}, {}, {}, {}, n_ids, n_cells, is_single};
  std::vector<std::pair<std::int64_t, std::int64_t>> runs;  // of rows
  std::int64_t n_used = 0;
  for (const std::int64_t table : tables) {
    if (table < 0 || table + 1 >= static_cast<std::int64_t>(table_starts.size())) {
      refuse("tables: got " + listed(tables) + ", expected numbers in [0, " +
             std::to_string(table_starts.size() - 1) + ")");
    }
    const std::int64_t begin = table_starts[static_cast<std::size_t>(table)];
    const std::int64_t end = table_starts[static_cast<std::size_t>(table) + 1];
    chosen.table_starts.push_back(chosen.table_starts.back() + end - begin);
    n_used += starts.data()[end] - starts.data()[begin];
    if (!runs.empty() && runs.back().second == begin) {
      runs.back().second = end;
    } else {
      runs.emplace_back(begin, end);
    }
  }
  if (shifts.size() != tables.size()) refuse("shifts: expected one for each of the tables");
  chosen.rows = Block<std::int64_t>::make(chosen.table_starts.back());
  std::int64_t u = 0;
  for (std::size_t t = 0; t < tables.size(); ++t) {
    const std::int64_t* const row = rows.data() + table_starts[static_cast<std::size_t>(tables[t])];
    for (std::int64_t i = 0; u < chosen.table_starts[t + 1]; ++i, ++u) {
      chosen.rows.data()[u] = row[i] + shifts[t];
    }
  }
  if (runs.size() == 1) {
    chosen.starts = starts.part(runs[0].first, runs[0].second + 1);
    chosen.order = order;
    chosen.cells = cells;
    return chosen;
  }
  chosen.starts = Block<std::int32_t>::make(chosen.size() + 1);
  chosen.order = Block<std::int32_t>::make(n_used);
  chosen.cells = Block<std::int32_t>::make(n_used);
  std::int32_t* start = chosen.starts.data();
  std::int32_t used = 0;
  for (const auto& [begin, end] : runs) {
    const std::int32_t first = starts.data()[begin], last = starts.data()[end];
    for (std::int64_t i = begin; i < end; ++i) *start++ = starts.data()[i] - first + used;
    std::copy(order.data() + first, order.data() + last, chosen.order.data() + used);
    std::copy(cells.data() + first, cells.data() + last, chosen.cells.data() + used);
    used += last - first;
  }
  *start = used;
  return chosen;
}

// Each id's row as a number within its logical table's rows; 0 where an id is in no table.
nb::ndarray<nb::numpy, std::int64_t> BoundGroups::numbers() const {
  std::unique_ptr<std::int64_t[]> number(new std::int64_t[static_cast<std::size_t>(n_ids)]());
  for (std::size_t t = 0; t + 1 < table_starts.size(); ++t) {
    for (std::int64_t u = table_starts[t]; u < table_starts[t + 1]; ++u) {
      for (std::int32_t k = starts.data()[u]; k < starts.data()[u + 1]; ++k) {
        number[static_cast<std::size_t>(order.data()[k])] = u - table_starts[t];
      }
    }
  }
  return new_array(std::move(number), n_ids);
}

template <class T>
nb::ndarray<nb::numpy, T> view(const BoundGroups& self, const Block<T>& block) {
  return nb::ndarray<nb::numpy, T>(block.data(), {static_cast<std::size_t>(block.n)},
                                   nb::find(self));
}

BoundGroups bind_group_ids(const BoundBatch& batch, const BoundSlots& slots, int threads) {
  slots.check_batch(batch);
  const std::int64_t n_ids = batch.csr.n_ids;
  BoundGroups groups{Block<std::int64_t>::make(n_ids),
                     std::vector<std::int64_t>(slots.table_bases.size() + 1),
                     Block<std::int32_t>::make(n_ids + 1),
                     Block<std::int32_t>::make(n_ids),
                     Block<std::int32_t>::make(n_ids),
                     n_ids,
                     batch.n_cells(),
                     false};
  const GroupRequest request = {batch.csr, slots.slot_tables()};
  std::int64_t fault = kNoFault;
  {
    const nb::gil_scoped_release release;
    fault = group_ids(request,
                      {groups.rows.data(), groups.table_starts.data(), groups.starts.data(),
                       groups.order.data(), groups.cells.data()},
                      threads);
  }
  if (fault >= 0) raise_fault(batch.csr, slots);
  groups.is_single = fault == kSingle;
  groups.rows.n = groups.table_starts.back();
  groups.starts.n = groups.rows.n + 1;
  groups.order.n = groups.cells.n = groups.starts.data()[groups.rows.n];
  return groups;
}

// ---- forward and backward -----------------------------------------------------------------------

void bind_gather_pool(const Input& weights_RD, const BoundBatch& batch, const BoundSlots& slots,
                      const Output& out_BX, int threads) {
  GatherRequest request = {
      batch.csr, slots.list(), {}, matrix_rows("out_BX", out_BX, batch.csr.n_examples)};
  if (is_half(weights_RD)) {
    check_matrix<std::uint16_t>("weights_RD", weights_RD);
    request.half = static_cast<const std::uint16_t*>(weights_RD.data());
    request.weights = {nullptr, weights_RD.stride(0),
                       static_cast<std::int64_t>(weights_RD.shape(1))};
  } else {
    request.weights = matrix_rows("weights_RD", weights_RD);
  }
  slots.check(batch, length(weights_RD), request.weights.width, request.out.width);
  std::int64_t fault = kNoFault;
  {
    const nb::gil_scoped_release release;
    fault = gather_pool(request, threads);
  }
  if (fault >= 0) raise_fault(batch.csr, slots);
}

void bind_wide_forward(const Input& weights_RC, const BoundBatch& batch, const BoundSlots& slots,
                       const Output& logits_BC, int threads) {
  const ConstRows weights = matrix_rows("weights_RC", weights_RC);
  const GatherRequest request = {
      batch.csr, slots.list(), weights,
      matrix_rows("logits_BC", logits_BC, batch.csr.n_examples, weights.width)};
  slots.check(batch, length(weights_RC), 0, weights.width);
  std::int64_t fault = kNoFault;
  {
    const nb::gil_scoped_release release;
    fault = wide_forward(request, threads);
  }
  if (fault >= 0) raise_fault(batch.csr, slots);
}

void check_groups(const BoundGroups& groups, const BoundBatch& batch) {
  if (groups.n_ids == batch.csr.n_ids && groups.n_cells == batch.n_cells()) return;
  refuse("groups: made from " + std::to_string(groups.n_ids) + " ids in " +
         std::to_string(groups.n_cells) + " cells, but the batch has " +
         std::to_string(batch.csr.n_ids) + " in " + std::to_string(batch.n_cells()) +
         "; pass the groups of this very batch");
}

nb::ndarray<nb::numpy, float> bind_segment_sum(const Input& grad_BX, const BoundGroups& groups,
                                               const BoundBatch& batch, const BoundSlots& slots,
                                               std::int64_t width, int threads,
                                               const std::optional<Input>& sequence_grads_MD,
                                               const std::optional<Input>& sequence_rows_N,
                                               const std::optional<Input>& lane_B,
                                               std::int64_t lanes, bool bf16) {
  slots.check_batch(batch);
  const ConstRows grad = matrix_rows("grad_BX", grad_BX, batch.csr.n_examples);
  slots.check_columns(width, grad.width);
  check_groups(groups, batch);
  const auto* const sequence_rows =
      vector_data<std::int64_t>("sequence_rows_N", sequence_rows_N, batch.csr.n_ids);
  ConstRows sequence{nullptr, 0, width};
  if (sequence_rows != nullptr && sequence_grads_MD) {
    sequence = matrix_rows("sequence_grads_MD", *sequence_grads_MD, -1, width);
    const std::int64_t last =
        batch.csr.n_ids == 0 ? -1
                             : *std::max_element(sequence_rows, sequence_rows + batch.csr.n_ids);
    if (last >= length(*sequence_grads_MD)) {
      refuse("sequence_rows_N: got row " + std::to_string(last) + ", but sequence_grads_MD has " +
             std::to_string(length(*sequence_grads_MD)));
    }
  } else if (sequence_rows != nullptr || sequence_grads_MD) {
    refuse("sequence_grads_MD and sequence_rows_N: got one, expected both or neither");
  }
  const auto* const lane = vector_data<std::int32_t>("lane_B", lane_B, batch.csr.n_examples);
  if (lane != nullptr) {
    const auto bounds = std::minmax_element(lane, lane + batch.csr.n_examples);
    if (batch.csr.n_examples > 0 && (*bounds.first < 0 || *bounds.second >= lanes)) {
      refuse("lane_B: expected lanes in [0, " + std::to_string(lanes) + ")");
    }
  }
  std::unique_ptr<float[]> sums(new float[static_cast<std::size_t>(groups.size() * width)]);
  std::vector<float> scales;  // by cell: what its combiner multiplies by
  std::int64_t fault = kNoFault;
  {
    const nb::gil_scoped_release release;
    if (!slots.sums_only && !(groups.is_single && batch.csr.values == nullptr)) {
      scales.assign(static_cast<std::size_t>(batch.n_cells()), 1.0F);
      SlotList list = slots.list();
      list.sizes = nullptr;
      fault = cell_scales(batch.csr, list, scales.data(), threads);
    }
    if (fault == kNoFault) {
      const SegmentRequest request{groups.starts.data(),
                                   groups.order.data(),
                                   groups.cells.data(),
                                   groups.size(),
                                   batch.csr.n_features,
                                   slots.column_of_feature.data(),
                                   scales.empty() ? nullptr : scales.data(),
                                   batch.csr.values,
                                   grad,
                                   sequence_rows,
                                   sequence,
                                   {sums.get(), width, width}};
      if (lane != nullptr) {
        segment_sum_by_lanes(request, {lane, batch.csr.n_examples, lanes, bf16}, threads);
      } else {
        segment_sum(request, threads);
      }
    }
  }
  if (fault >= 0) raise_fault(batch.csr, slots);
  return new_array(std::move(sums), groups.size(), width);
}

// ---- copying ------------------------------------------------------------------------------------

nb::tuple bind_take_rows(const BoundBatch& batch, const Input& rows_B, int threads) {
  const auto* const rows = vector_data<std::int64_t>("rows_B", rows_B);
  const std::int64_t n = length(rows_B);
  check_positions("rows_B", rows, n, batch.csr.n_examples, "positions");
  const std::int64_t n_offsets = n * batch.csr.n_features + 1;
  std::unique_ptr<std::int64_t[]> offsets(new std::int64_t[static_cast<std::size_t>(n_offsets)]);
  const std::int64_t n_ids = take_offsets(batch.csr, rows, n, offsets.get());
  if (n_ids < 0) {
    refuse("offsets_BF: not ascending within [0, " + std::to_string(batch.csr.n_ids) +
           "] at one of the positions");
  }
  std::unique_ptr<std::int64_t[]> ids(new std::int64_t[static_cast<std::size_t>(n_ids)]);
  std::unique_ptr<float[]> values;
  if (batch.csr.values != nullptr) values.reset(new float[static_cast<std::size_t>(n_ids)]);
  {
    const nb::gil_scoped_release release;
    take_ids(batch.csr, rows, n, offsets.get(), ids.get(), values.get(), threads);
  }
  const nb::object values_N =
      values ? nb::cast(new_array(std::move(values), n_ids)) : nb::object(nb::none());
  return nb::make_tuple(new_array(std::move(ids), n_ids), new_array(std::move(offsets), n_offsets),
                        values_N);
}

}  // namespace

void bind_sparse(nb::module_& m) {
  nb::class_<BoundBatch>(m, "CsrBatch")
      .def(nb::init<Input, Input, std::optional<Input>, std::int64_t>(), "ids_N"_a, "offsets_BF"_a,
           "values_N"_a.none(), "n_features"_a)
      .def_ro("ids_N", &BoundBatch::ids)
      .def_ro("offsets_BF", &BoundBatch::offsets)
      .def_ro("values_N", &BoundBatch::values)
      .def_prop_ro("n_features", [](const BoundBatch& self) { return self.csr.n_features; });
  nb::class_<BoundSlots>(m, "Slots")
      .def(nb::init<std::int64_t, std::vector<std::int32_t>, std::vector<std::int32_t>,
                    std::vector<std::int64_t>, std::vector<std::int64_t>,
                    const std::vector<std::string>&, std::vector<std::int64_t>>(),
           nb::kw_only(), "n_features"_a, "features"_a, "tables"_a, "table_bases"_a,
           "table_sizes"_a, "combiners"_a, "columns"_a = std::vector<std::int64_t>())
      .def_ro("n_features", &BoundSlots::n_features)
      .def_ro("features", &BoundSlots::features)
      .def_ro("tables", &BoundSlots::tables)
      .def_ro("bases", &BoundSlots::bases)
      .def_ro("sizes", &BoundSlots::sizes)
      .def_ro("columns", &BoundSlots::columns)
      .def_prop_ro("combiners",
                   [](const BoundSlots& self) {
                     return std::vector<std::int64_t>(self.combiners.begin(), self.combiners.end());
                   })
      .def_ro("table_bases", &BoundSlots::table_bases)
      .def_ro("table_sizes", &BoundSlots::table_sizes);
  nb::class_<BoundGroups>(m, "Groups")
      .def("__len__", &BoundGroups::size)
      .def_prop_ro("rows_U", [](const BoundGroups& self) { return view(self, self.rows); })
      .def_prop_ro("table_starts",
                   [](BoundGroups& self) {
                     return nb::ndarray<nb::numpy, std::int64_t>(
                         self.table_starts.data(), {self.table_starts.size()}, nb::find(self));
                   })
      .def_prop_ro("starts_U", [](const BoundGroups& self) { return view(self, self.starts); })
      .def_prop_ro("order", [](const BoundGroups& self) { return view(self, self.order); })
      .def_prop_ro("cells", [](const BoundGroups& self) { return view(self, self.cells); })
      .def_ro("is_single", &BoundGroups::is_single)
      .def("numbers", &BoundGroups::numbers)
      .def("select", &BoundGroups::select, "tables"_a, "shifts"_a);
  m.def("group_ids", &bind_group_ids, "batch"_a, "slots"_a, "threads"_a = 1);
  m.def("gather_pool", &bind_gather_pool, "weights_RD"_a, "batch"_a, "slots"_a, "out_BX"_a,
        "threads"_a = 1);
  m.def("wide_forward", &bind_wide_forward, "weights_RC"_a, "batch"_a, "slots"_a, "logits_BC"_a,
        "threads"_a = 1);
  m.def("segment_sum", &bind_segment_sum, "grad_BX"_a, "groups"_a, "batch"_a, "slots"_a, "width"_a,
        "threads"_a = 1, "sequence_grads_MD"_a = nb::none(), "sequence_rows_N"_a = nb::none(),
        "lane_B"_a = nb::none(), "lanes"_a = 0, "bf16"_a = false);
  m.def("take_rows", &bind_take_rows, "batch"_a, "rows_B"_a, "threads"_a = 1);
}

}  // namespace widedeep
