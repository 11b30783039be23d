#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <limits>
#include <optional>

#include "arrow_input.hpp"
#include "bind_arrays.hpp"
#include "bind_plan.hpp"
#include "bind_rows.hpp"
#include "bind_score.hpp"
#include "crc32c.hpp"
#include "fingerprint.hpp"
#include "rank_request.hpp"
#include "transform.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace widedeep {
namespace {

using transform::Plan;
using transform::Program;

template <class T>
using Vector = Array<T, 1>;
using Words = Array<std::uint64_t, 2>;

struct OwnedProgram {
  Program program;
  nb::object plan;
  PlanColumns columns;
};

template <class T>
std::vector<T> to_vector(const Vector<T>& array) {
  return {array.data(), array.data() + array.shape(0)};
}

using TextSlot = TextVocabulary::Slot;
using IntegerSlot = IntegerVocabulary::Slot;

// Slots that a file holds, as pairs of words.
template <class T>
const T* slots_of(const Words& words) {
  static_assert(sizeof(T) == 16);
  if (words.shape(1) != 2) throw std::invalid_argument("got an index without two words a slot");
  return reinterpret_cast<const T*>(words.data());
}

template <class T>
nb::object copied_slots(const SlotArray<T>& slots) {
  const auto* const words = reinterpret_cast<const std::uint64_t*>(slots.data());
  return to_array(std::vector<std::uint64_t>(words, words + 2 * slots.size()), slots.size(),
                  std::size_t{2});
}

nb::object text_index(const Vector<std::int64_t>& offsets, const Vector<std::uint8_t>& bytes) {
  const TextVocabulary vocabulary(offsets.data(), reinterpret_cast<const char*>(bytes.data()),
                                  static_cast<std::int64_t>(offsets.shape(0)) - 1);
  return copied_slots(vocabulary.slots());
}

nb::object integer_index(const Vector<std::int64_t>& values) {
  const IntegerVocabulary vocabulary(values.data(), static_cast<std::int64_t>(values.shape(0)));
  if (vocabulary.slots().empty()) {
    const auto* const positions = reinterpret_cast<const std::int32_t*>(vocabulary.direct().data());
    return to_array(std::vector<std::int32_t>(positions, positions + vocabulary.direct().size()));
  }
  return copied_slots(vocabulary.slots());
}

int add_text_vocabulary(OwnedPlan& self, const Vector<std::int64_t>& offsets,
                        const Vector<std::uint8_t>& bytes, const std::optional<Words>& index) {
  const char* const text = reinterpret_cast<const char*>(bytes.data());
  const auto size = static_cast<std::int64_t>(offsets.shape(0)) - 1;
  self.plan.texts.push_back(index ? std::make_unique<TextVocabulary>(offsets.data(), text, size,
                                                                     slots_of<TextSlot>(*index),
                                                                     index->shape(0))
                                  : std::make_unique<TextVocabulary>(offsets.data(), text, size));
  self.owners.push_back(nb::cast(offsets));
  self.owners.push_back(nb::cast(bytes));
  if (index) self.owners.push_back(nb::cast(*index));
  return static_cast<int>(self.plan.texts.size()) - 1;
}

int add_integer_vocabulary(OwnedPlan& self, const Vector<std::int64_t>& values,
                           const std::optional<Words>& index,
                           const std::optional<Vector<std::int32_t>>& direct) {
  const auto size = static_cast<std::int64_t>(values.shape(0));
  SlotArray<std::uint32_t> positions;
  SlotArray<IntegerSlot> slots;
  if (index) slots = {slots_of<IntegerSlot>(*index), index->shape(0)};
  if (direct) {
    positions = {reinterpret_cast<const std::uint32_t*>(direct->data()), direct->shape(0)};
  }
  self.plan.integers.push_back(
      index || direct ? std::make_unique<IntegerVocabulary>(values.data(), size,
                                                            std::move(positions), std::move(slots))
                      : std::make_unique<IntegerVocabulary>(values.data(), size));
  if (index) self.owners.push_back(nb::cast(*index));
  if (direct) self.owners.push_back(nb::cast(*direct));
  return static_cast<int>(self.plan.integers.size()) - 1;
}

constexpr std::array<const char*, 5> kWays = {"text_vocabulary", "integer_vocabulary", "hash_text",
                                              "hash_integer", "identity"};

int add_categorical(OwnedPlan& self, const std::string& name, const std::string& column,
                    const std::string& way, int vocabulary, std::int64_t buckets,
                    std::int64_t oov_buckets, bool drop_unseen, bool empty_as_null,
                    bool key_is_place, const std::optional<std::string>& weights,
                    const std::optional<std::string>& parallel, std::optional<std::int64_t> maxlen,
                    bool keep_first, bool keeps_nulls, bool wants_keys, std::int64_t remainders,
                    std::optional<std::int64_t> default_id, std::int64_t default_key) {
  Plan& plan = self.plan;
  transform::CategoricalOptions options;
  options.way = static_cast<transform::Way>(named("way", kWays, way));
  if (options.way == transform::Way::text_vocabulary) {
    options.texts = plan.texts.at(static_cast<std::size_t>(vocabulary)).get();
  } else if (options.way == transform::Way::integer_vocabulary) {
    options.integers = plan.integers.at(static_cast<std::size_t>(vocabulary)).get();
  }
  options.buckets = buckets;
  options.remainders = remainders;
  options.default_id = default_id;
  options.default_key = default_key;
  options.oov_buckets = oov_buckets;
  options.drop_unseen = drop_unseen;
  options.empty_as_null = empty_as_null;
  options.key_is_place = key_is_place;
  options.column_name = column;
  options.weights_name = weights.value_or("");
  options.parallel_name = parallel.value_or("");
  if (maxlen) options.maxlen = *maxlen;
  options.keep_first = keep_first;
  options.keeps_nulls = keeps_nulls;
  plan.parts.push_back(std::make_unique<transform::CategoricalPart>(name, std::move(options)));
  plan.parts.back()->column = plan.column_index(column);
  if (weights) plan.parts.back()->weights = plan.column_index(*weights);
  if (parallel) plan.parts.back()->parallel = plan.column_index(*parallel);
  plan.parts.back()->wants_keys = wants_keys;
  return static_cast<int>(plan.parts.size()) - 1;
}

// Where a column was stored in a narrower form than its values may come in; for all that reads it.
void set_storage(OwnedPlan& self, const std::string& column, const std::string& kind, int scale,
                 std::int64_t unit) {
  constexpr std::array<const char*, 6> kKinds = {"any",     "float16", "float32",
                                                 "float64", "decimal", "time"};
  const Storage storage{static_cast<Storage::Kind>(named("storage", kKinds, kind)), scale, unit};
  const int index = self.plan.column_index(column);
  for (const auto& part : self.plan.parts) {
    if (part->column == index) part->storage = storage;
  }
  for (const auto& number : self.plan.numbers) {
    if (number->column == index) number->storage = storage;
  }
}

int add_bucketized(OwnedPlan& self, const std::string& name, const std::string& column,
                   const Vector<double>& boundaries, bool wants_keys, std::int64_t size) {
  Plan& plan = self.plan;
  plan.parts.push_back(
      std::make_unique<transform::BucketizedPart>(name, to_vector(boundaries), size));
  plan.parts.back()->column = plan.column_index(column);
  plan.parts.back()->wants_keys = wants_keys;
  return static_cast<int>(plan.parts.size()) - 1;
}

int add_piecewise(OwnedPlan& self, const std::string& name, const std::string& column,
                  const Vector<double>& cuts) {
  Plan& plan = self.plan;
  plan.parts.push_back(std::make_unique<transform::PiecewisePart>(name, to_vector(cuts)));
  plan.parts.back()->column = plan.column_index(column);
  return static_cast<int>(plan.parts.size()) - 1;
}

int add_learned_cross(OwnedPlan& self, const std::string& name, const std::vector<int>& parts,
                      const Array<std::int64_t, 2>& combinations, std::int64_t max_combinations) {
  std::vector<std::int64_t> limits;
  for (const int part : parts) {
    limits.push_back(self.plan.parts.at(static_cast<std::size_t>(part))->id_limit());
  }
  if (combinations.shape(1) != parts.size()) {
    throw std::invalid_argument("got combinations of " + std::to_string(combinations.shape(1)) +
                                " parts for the cross '" + name + "' of " +
                                std::to_string(parts.size()));
  }
  auto cross = std::make_unique<transform::CrossFeature>();
  cross->name = name;
  cross->parts = parts;
  cross->max_combinations = max_combinations;
  cross->vocabulary = std::make_unique<TupleVocabulary>(
      combinations.data(), static_cast<std::int64_t>(combinations.shape(0)), std::move(limits));
  self.owners.push_back(nb::cast(combinations));
  self.plan.crosses.push_back(std::move(cross));
  return static_cast<int>(self.plan.crosses.size()) - 1;
}

int add_hashed_cross(OwnedPlan& self, const std::string& name, const std::vector<int>& parts,
                     std::int64_t buckets, std::int64_t max_combinations, std::int64_t hash_key) {
  auto cross = std::make_unique<transform::CrossFeature>();
  cross->name = name;
  cross->parts = parts;
  cross->buckets = buckets;
  cross->hash_key = static_cast<std::uint64_t>(hash_key);
  cross->max_combinations = max_combinations;
  self.plan.crosses.push_back(std::move(cross));
  return static_cast<int>(self.plan.crosses.size()) - 1;
}

transform::Scaling scaling_named(const std::string& name) {
  if (name == "quantile") return transform::Scaling::quantile;
  if (name == "log1p") return transform::Scaling::log1p;
  return name == "none" ? transform::Scaling::none : transform::Scaling::affine;
}

int add_number(OwnedPlan& self, const std::string& name, const std::string& column,
               const std::string& declared, bool indicator,
               const std::vector<Vector<double>>& boundaries, const Vector<double>& shift,
               const Vector<double>& scale, const Vector<float>& fill) {
  const bool needs_boundaries = scaling_named(declared) == transform::Scaling::quantile;
  if (shift.shape(0) != fill.shape(0) || scale.shape(0) != fill.shape(0) ||
      (needs_boundaries && boundaries.size() != fill.shape(0))) {
    throw std::invalid_argument("got statistics of another size than its own");
  }
  auto number = std::make_unique<transform::NumericFeature>();
  number->name = name;
  number->transform = declared;
  number->size = static_cast<std::int64_t>(fill.shape(0));
  number->indicator = indicator;
  for (std::int64_t j = 0; j < number->size; ++j) {
    const auto at = static_cast<std::size_t>(j);
    const transform::Scaling scaling = scaling_named(declared);
    std::vector<double> cuts;
    if (scaling == transform::Scaling::quantile) cuts = to_vector(boundaries.at(at));
    number->curves.emplace_back(scaling, std::move(cuts), shift.data()[at], scale.data()[at]);
  }
  number->fill = to_vector(fill);
  number->column = self.plan.column_index(column);
  self.plan.numbers.push_back(std::move(number));
  return static_cast<int>(self.plan.numbers.size()) - 1;
}

// The counts of a part's or cross's `width` known ids.
int add_counts(OwnedPlan& self, const std::string& name, const std::string& source, int index,
               std::int64_t width) {
  const Plan& plan = self.plan;
  std::int64_t known = 0;
  if (source == "cross") {
    const auto& cross = *plan.crosses.at(static_cast<std::size_t>(index));
    known = cross.hashed() ? cross.buckets : cross.vocabulary->size();
  } else {
    known = plan.parts.at(static_cast<std::size_t>(index))->id_limit() - transform::kFirstKnownId;
  }
  if (known != width) throw std::invalid_argument("got another number of values than its source's");
  auto number = std::make_unique<transform::NumericFeature>();
  number->name = name;
  number->size = width;
  number->counted = index;
  number->counts_cross = source == "cross";
  self.plan.numbers.push_back(std::move(number));
  return static_cast<int>(self.plan.numbers.size()) - 1;
}

int add_number_sequence(OwnedPlan& self, const std::string& name, const std::string& column,
                        const std::string& declared, const std::vector<Vector<double>>& boundaries,
                        double shift, double scale, const std::optional<std::string>& parallel,
                        std::optional<std::int64_t> maxlen, bool keep_first) {
  const transform::Scaling scaling = scaling_named(declared);
  std::vector<double> cuts;
  if (scaling == transform::Scaling::quantile) {
    if (boundaries.size() != 1) throw std::invalid_argument("got no boundaries");
    cuts = to_vector(boundaries[0]);
  }
  transform::NumberSequenceOptions options{
      .transform = declared,
      .curve = {scaling, std::move(cuts), shift, scale},
      .maxlen = maxlen.value_or(std::numeric_limits<std::int64_t>::max()),
      .keep_first = keep_first,
      .column_name = column,
      .parallel_name = parallel.value_or("")};
  Plan& plan = self.plan;
  plan.parts.push_back(std::make_unique<transform::NumberSequencePart>(name, std::move(options)));
  plan.parts.back()->column = plan.column_index(column);
  if (parallel) plan.parts.back()->parallel = plan.column_index(*parallel);
  return static_cast<int>(plan.parts.size()) - 1;
}

void add_label(OwnedPlan& self, const std::string& column,
               const std::optional<std::vector<std::string>>& classes, bool nullable, bool several,
               bool is_weight) {
  auto label = std::make_unique<transform::Label>();
  label->column_name = column;
  label->column = self.plan.column_index(column);
  if (classes) label->classes = std::make_unique<transform::LabelClasses>(*classes);
  label->nullable = nullable;
  label->several = several;
  label->is_weight = is_weight;
  self.plan.labels.push_back(std::move(label));
}

// One value as a column of one row.
struct FixedValue {
  FixedValue(const nb::object& value, const nb::callable& plain)
      : columns(rows_of(value), ColumnNames({"value"}), plain, origin, nullptr) {}

  static nb::list rows_of(const nb::object& value) {
    nb::dict row;
    row["value"] = value;
    nb::list rows;
    rows.append(row);
    return rows;
  }

  const Origin origin{"training_only", 0};
  const RowColumns columns;
};

// Encodes one value once, to be what every scored row gets.
void fix_part(OwnedPlan& self, int index, nb::object value, nb::callable plain) {
  transform::Part& part = *self.plan.parts.at(static_cast<std::size_t>(index));
  const FixedValue fixed(value, plain);
  transform::Scratch scratch;
  auto cells = std::make_unique<transform::PartCells>();
  part.encode({&fixed.columns.columns()[0], nullptr, nullptr}, 0, 1, {fixed.origin, 0}, scratch,
              *cells);
  if (part.weights >= 0) cells->ids.values.assign(cells->ids.ids.size(), 1.0F);
  part.fixed = std::move(cells);
}

void fix_number(OwnedPlan& self, int index, nb::object value, nb::callable plain) {
  transform::NumericFeature& number = *self.plan.numbers.at(static_cast<std::size_t>(index));
  const FixedValue fixed(value, plain);
  transform::Scratch scratch;
  std::vector<float> values(static_cast<std::size_t>(number.width()));
  number.encode(fixed.columns.columns()[0], 0, 1, {fixed.origin, 0}, scratch, values.data(),
                number.width());
  number.fixed = std::move(values);
}

OwnedProgram make_program(nb::object plan_object, const NamedSlots& slots, bool dense, bool targets,
                          bool fixed) {
  const auto& self = nb::cast<const OwnedPlan&>(plan_object);
  OwnedProgram owned;
  owned.plan = plan_object;
  owned.program.plan = &self.plan;
  owned.program.slots = slots_named(slots);
  owned.program.dense = dense;
  owned.program.targets = targets;
  owned.program.fixed = fixed;
  owned.columns = {&self.plan, owned.program.columns()};
  return owned;
}

std::vector<std::string> column_names(const OwnedProgram& self) { return self.columns.names(); }

using transform::Buffer;

template <class T>
nb::object to_numpy(Buffer<T>& buffer, std::initializer_list<std::size_t> shape) {
  T* const data = buffer.release();
  nb::capsule owner(data, [](void* p) noexcept { pooled_free(p); });
  return nb::cast(nb::ndarray<nb::numpy, T>(data, shape, owner));
}

nb::tuple to_tuple(transform::Encoded& encoded) {
  const auto rows = static_cast<std::size_t>(encoded.n_rows);
  const auto n_ids = static_cast<std::size_t>(encoded.n_ids);
  nb::object values = nb::none();
  nb::object weight = nb::none();
  nb::object group = nb::none();
  if (encoded.has_values) values = to_numpy(encoded.values, {n_ids});
  if (encoded.has_weight) weight = to_numpy(encoded.weight, {rows});
  if (encoded.has_group) group = to_numpy(encoded.group, {rows});
  return nb::make_tuple(
      to_numpy(encoded.ids, {n_ids}),
      to_numpy(encoded.offsets, {static_cast<std::size_t>(encoded.n_offsets)}),
      to_numpy(encoded.dense, {rows, static_cast<std::size_t>(encoded.n_dense)}), values,
      to_numpy(encoded.labels, {rows, static_cast<std::size_t>(encoded.n_labels)}), weight, group);
}

nb::tuple encode(const OwnedProgram& self, nb::sequence batches, const std::string& origin_name,
                 std::int64_t first_row, int threads) {
  const Origin origin{origin_name, first_row};
  const ArrowRows rows(self.columns, batches, origin);
  transform::Encoded encoded;
  {
    const nb::gil_scoped_release release;
    encoded = transform::run(self.program, rows.inputs, origin, threads);
  }
  return to_tuple(encoded);
}

// None where an id does not fit into its width.
nb::object encode_packed(const OwnedProgram& self, nb::sequence batches,
                         std::vector<std::uint8_t> widths, const std::string& origin_name,
                         std::int64_t first_row, int threads) {
  if (widths.size() != self.program.slots.size()) {
    refuse("widths: got " + std::to_string(widths.size()) + ", expected one for each of " +
           std::to_string(self.program.slots.size()) + " slots");
  }
  const Origin origin{origin_name, first_row};
  const ArrowRows rows(self.columns, batches, origin);
  transform::Packed packed;
  {
    const nb::gil_scoped_release release;
    packed = transform::run_packed(self.program, rows.inputs, origin, threads, std::move(widths));
  }
  if (!packed.fits) return nb::none();
  return nb::make_tuple(packed.layout, to_array(std::move(packed.bytes)),
                        to_array(std::move(packed.starts)));
}

// Also returns, for each column, in how many rows its key was absent.
nb::tuple encode_rows(const OwnedProgram& self, nb::sequence rows, nb::callable plain,
                      const std::string& origin_name, std::int64_t first_row, int threads) {
  const Origin origin{origin_name, first_row};
  const RowColumns columns(rows, ColumnNames(self.columns.names()), plain, origin,
                           self.program.plan);
  transform::Encoded encoded;
  {
    const nb::gil_scoped_release release;
    encoded = transform::run(
        self.program, {self.columns.place(columns.columns(), columns.length())}, origin, threads);
  }
  return nb::make_tuple(to_tuple(encoded), nb::cast(columns.absent()));
}

std::uint64_t fingerprint64_of(nb::bytes text) { return fingerprint64(text.c_str(), text.size()); }

std::uint32_t crc32c_of(const Vector<std::uint8_t>& data, std::uint32_t before) {
  const nb::gil_scoped_release release;
  return crc32c(data.data(), static_cast<std::int64_t>(data.shape(0)), before);
}

bool is_misspelt_name(nb::bytes key, nb::bytes column) {
  return is_misspelt({key.c_str(), key.size()}, {column.c_str(), column.size()});
}

void raise_input_error(const std::exception_ptr& error, void*) {
  try {
    std::rethrow_exception(error);
  } catch (const InputError& input) {
    const char* const names[] = {"FeatureError", "DataError", "SchemaError", "LimitError"};
    const nb::object kind =
        nb::module_::import_("widedeep.errors").attr(names[static_cast<std::size_t>(input.kind())]);
    PyErr_SetString(kind.ptr(), input.what());
  }
}

}  // namespace

const transform::Program& lent_program(nb::handle program) {
  return nb::cast<const OwnedProgram&>(program).program;
}

void bind_transform(nb::module_& m) {
  nb::register_exception_translator(raise_input_error);
  m.def("fingerprint64", &fingerprint64_of, "text"_a);
  m.def("crc32c", &crc32c_of, "data"_a, "before"_a = 0);
  m.def("is_misspelt", &is_misspelt_name, "key"_a, "column"_a);
  nb::class_<OwnedPlan>(m, "TransformPlan")
      .def(nb::init<>())
      .def_prop_rw(
          "max_values", [](const OwnedPlan& self) { return self.plan.max_values; },
          [](OwnedPlan& self, std::int64_t n) { self.plan.max_values = n; })
      .def(
          "check_values", [](const OwnedPlan& self, std::int64_t n) { self.plan.check_values(n); },
          "total"_a)
      .def("add_text_vocabulary", &add_text_vocabulary, "offsets"_a, "bytes"_a,
           "index"_a = nb::none())
      .def("add_integer_vocabulary", &add_integer_vocabulary, "values"_a, "index"_a = nb::none(),
           "direct"_a = nb::none())
      .def("add_categorical", &add_categorical, "name"_a, "column"_a, nb::kw_only(), "way"_a,
           "vocabulary"_a, "buckets"_a, "oov_buckets"_a, "drop_unseen"_a, "empty_as_null"_a,
           "key_is_place"_a, "weights"_a.none(), "parallel"_a = nb::none(), "maxlen"_a = nb::none(),
           "keep_first"_a = false, "keeps_nulls"_a = false, "wants_keys"_a, "remainders"_a = 0,
           "default_id"_a = nb::none(), "default_key"_a = 0)
      .def(
          "truncated",
          [](const OwnedPlan& self, int part) {
            return self.plan.parts.at(static_cast<std::size_t>(part))->truncated.load();
          },
          "part"_a)
      .def("set_storage", &set_storage, "column"_a, "kind"_a, "scale"_a, "unit"_a)
      .def("add_bucketized", &add_bucketized, "name"_a, "column"_a, "boundaries"_a, "wants_keys"_a,
           "size"_a)
      .def("add_piecewise", &add_piecewise, "name"_a, "column"_a, "cuts"_a)
      .def("add_learned_cross", &add_learned_cross, "name"_a, "parts"_a, "combinations"_a,
           "max_combinations"_a)
      .def("add_hashed_cross", &add_hashed_cross, "name"_a, "parts"_a, "buckets"_a,
           "max_combinations"_a, "hash_key"_a)
      .def("add_number", &add_number, "name"_a, "column"_a, nb::kw_only(), "transform"_a,
           "indicator"_a, "boundaries"_a, "shift"_a, "scale"_a, "fill"_a)
      .def("add_counts", &add_counts, "name"_a, "source"_a, "index"_a, "width"_a)
      .def("add_number_sequence", &add_number_sequence, "name"_a, "column"_a, nb::kw_only(),
           "transform"_a, "boundaries"_a, "shift"_a, "scale"_a, "parallel"_a.none(),
           "maxlen"_a.none(), "keep_first"_a)
      .def("add_label", &add_label, "column"_a, "classes"_a.none(), "nullable"_a = false,
           "several"_a = false, "is_weight"_a = false)
      .def(
          "set_weight",
          [](OwnedPlan& self, const std::string& column) {
            self.plan.weight_column = self.plan.column_index(column);
          },
          "column"_a)
      .def(
          "set_group",
          [](OwnedPlan& self, const std::string& column) {
            self.plan.group_column = self.plan.column_index(column);
          },
          "column"_a)
      .def("fix_part", &fix_part, "index"_a, "value"_a, "plain"_a)
      .def("fix_number", &fix_number, "index"_a, "value"_a, "plain"_a);
  nb::class_<OwnedProgram>(m, "TransformProgram")
      .def_prop_ro("columns", &column_names)
      .def("encode", &encode, "batches"_a, "origin"_a, "first_row"_a, "threads"_a)
      .def("encode_packed", &encode_packed, "batches"_a, "widths"_a, "origin"_a, "first_row"_a,
           "threads"_a)
      .def("encode_rows", &encode_rows, "rows"_a, "plain"_a, "origin"_a, "first_row"_a,
           "threads"_a);
  m.def("text_index", &text_index, "offsets"_a, "bytes"_a);
  m.def("integer_index", &integer_index, "values"_a);
  m.def("make_program", &make_program, "plan"_a, "slots"_a, nb::kw_only(), "dense"_a, "targets"_a,
        "fixed"_a);
}

}  // namespace widedeep
