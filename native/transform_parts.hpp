// The features that have ids of their own: categoricals, buckets, and the raw columns of crosses.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "column.hpp"
#include "column_values.hpp"
#include "input_error.hpp"
#include "vocabulary.hpp"

namespace widedeep::transform {

constexpr std::int64_t kUnseenId = 0;
constexpr std::int64_t kMissingId = 1;
constexpr std::int64_t kFirstKnownId = 2;

// Weights and labels beyond these are refused: sums of them, of their squares and of what they
// weigh are to stay within float32.
constexpr double kLargestWeight = 1e15;
constexpr double kLargestLabel = 1e17;
inline constexpr const char* kWeightExpected = ", expected a number from 0 to 1e15";

// What a message says that a column of times takes.
inline constexpr const char* kTimeExpected =
    "a time as ISO 8601 text, or as a whole number of the column's units since 1970, or null";

// Where a row stands in the whole input, for messages.
struct Where {
  const Origin& origin;
  std::int64_t batch_row;  // of row 0 of the batch
};

// Lists of ids of consecutive rows. `ends` is empty where every row has exactly one id.
struct Cells {
  std::vector<std::int64_t> ids;
  std::vector<std::int64_t> ends;
  std::vector<float> values;  // a weight an id; empty where all are 1

  bool single() const noexcept { return ends.empty(); }
  std::int64_t begin(std::int64_t row) const noexcept {
    return ends.empty() ? row : (row == 0 ? 0 : ends[static_cast<std::size_t>(row - 1)]);
  }
  std::int64_t end(std::int64_t row) const noexcept {
    return ends.empty() ? row + 1 : ends[static_cast<std::size_t>(row)];
  }
  void clear() noexcept {
    ids.clear();
    ends.clear();
    values.clear();
  }
};

// What a part gives for some rows: its ids, and the integers by which it enters hashed crosses.
struct PartCells {
  Cells ids;
  Cells keys;  // uint64 bits; a null has none
};

// Room that a thread uses for one part after another.
struct Scratch {
  std::vector<TextSpan> texts;
  std::vector<char> digits;
  std::vector<std::int64_t> integers;
  std::vector<Status> status;
  std::vector<std::int64_t> places;
  std::vector<std::int64_t> element_ids;
  std::vector<std::int64_t> element_keys;
  std::vector<double> numbers;
  std::vector<std::int64_t> tuples;
  std::vector<std::int64_t> packed;
};

// The ids and keys of every entry of a dictionary, found once for all rows that use it.
struct DictionaryTable {
  std::vector<std::int64_t> ids;
  std::vector<std::int64_t> keys;
  bool empty() const noexcept { return ids.empty(); }
};

struct PartInput {
  const Column* column = nullptr;
  const Column* weights = nullptr;
  const Column* parallel = nullptr;
  const DictionaryTable* table = nullptr;  // null or empty: look each value up
};

class Part {
 public:
  explicit Part(std::string name) : name_(std::move(name)) {}
  virtual ~Part() = default;
  Part(const Part&) = delete;
  Part& operator=(const Part&) = delete;

  const std::string& name() const noexcept { return name_; }
  // Ids lie below this.
  virtual std::int64_t id_limit() const noexcept = 0;
  // Whether ids carry weights.
  virtual bool has_values() const noexcept { return weights >= 0; }
  // The most ids that one value has.
  virtual std::int64_t ids_per_value() const noexcept { return 1; }
  // A row of a list column has at most this many ids.
  virtual std::int64_t most_ids() const noexcept {
    return std::numeric_limits<std::int64_t>::max();
  }
  virtual DictionaryTable dictionary_table(const Column& column) const = 0;
  virtual void encode(const PartInput& input, std::int64_t row_begin, std::int64_t row_end,
                      const Where& where, Scratch& scratch, PartCells& out) const = 0;

  int column = -1;    // in the plan's list of columns
  int weights = -1;   // likewise; -1 for none
  int parallel = -1;  // likewise
  Storage storage;    // of the column
  bool wants_keys = false;
  mutable std::atomic<std::int64_t> truncated{0};  // rows whose lists were cut to `maxlen`
  std::unique_ptr<PartCells> fixed;  // one row: what every scored row gets instead of its own

 private:
  std::string name_;
};

enum class Way : std::uint8_t {
  text_vocabulary,
  integer_vocabulary,
  hash_text,
  hash_integer,
  identity
};

struct CategoricalOptions {
  Way way = Way::hash_text;
  const TextVocabulary* texts = nullptr;
  const IntegerVocabulary* integers = nullptr;
  std::int64_t buckets = 0;  // of hashing, or of identity
  // Of hashing: a bucket has two ids, its remainder by this number and, behind those, its quotient.
  std::int64_t remainders = 0;
  std::int64_t oov_buckets = 0;  // ids after the missing one for values out of the vocabulary
  bool drop_unseen = false;
  // An unseen value stands for the one with this id and key.
  std::optional<std::int64_t> default_id;
  std::int64_t default_key = 0;
  bool empty_as_null = false;
  // Of a longer list its last values are read, or its first.
  std::int64_t maxlen = std::numeric_limits<std::int64_t>::max();
  bool keep_first = false;
  bool keeps_nulls = false;  // a null within a list is the missing id, not left out
  // Enters hashed crosses by its place in the vocabulary (as TensorFlow's vocabulary columns do),
  // not by its fingerprint or value.
  bool key_is_place = false;
  std::string column_name;
  std::string weights_name;
  std::string parallel_name;  // a column whose lists have the same lengths, or empty
};

class CategoricalPart final : public Part {
 public:
  CategoricalPart(std::string name, CategoricalOptions options)
      : Part(std::move(name)), options_(std::move(options)) {}

  std::int64_t id_limit() const noexcept override;
  std::int64_t ids_per_value() const noexcept override { return options_.remainders > 0 ? 2 : 1; }
  std::int64_t most_ids() const noexcept override {
    const std::int64_t largest = std::numeric_limits<std::int64_t>::max();
    return options_.maxlen > largest / 2 ? largest : options_.maxlen * ids_per_value();
  }
  DictionaryTable dictionary_table(const Column& column) const override;
  void encode(const PartInput& input, std::int64_t row_begin, std::int64_t row_end,
              const Where& where, Scratch& scratch, PartCells& out) const override;

 private:
  bool reads_text() const noexcept {
    return options_.way == Way::text_vocabulary || options_.way == Way::hash_text;
  }
  std::int64_t vocabulary_size() const noexcept;
  void encode_scalars(const Scalars& scalars, std::int64_t begin, std::int64_t n, Scratch& scratch,
                      std::int64_t* ids, std::int64_t* keys) const;
  void encode_texts(const Scalars& scalars, std::int64_t begin, std::int64_t n, Scratch& scratch,
                    std::int64_t* ids, std::int64_t* keys) const;
  void encode_integers(const Scalars& scalars, std::int64_t begin, std::int64_t n, Scratch& scratch,
                       std::int64_t* ids, std::int64_t* keys) const;
  void finish_text(const TextSpan& text, std::int64_t* id, std::int64_t* key) const;
  void finish_integer(std::int64_t value, Status status, std::int64_t* id, std::int64_t* key) const;
  std::int64_t known_or_unseen(std::int64_t place, std::uint64_t hash) const noexcept;
  std::int64_t place_key(std::int64_t place, std::uint64_t hash) const noexcept;
  std::int64_t known_key(std::int64_t place, std::int64_t key) const noexcept;
  void encode_elements(const PartInput& input, std::int64_t begin, std::int64_t n, Scratch& scratch,
                       std::int64_t* ids, std::int64_t* keys) const;
  void encode_flat(const PartInput& input, std::int64_t row_begin, std::int64_t row_end,
                   const Where& where, Scratch& scratch, PartCells& out) const;
  void encode_lists(const PartInput& input, std::int64_t row_begin, std::int64_t row_end,
                    const Where& where, Scratch& scratch, PartCells& out) const;
  void append_row(const PartInput& input, std::int64_t row, ElementRange elements,
                  const std::int64_t* ids, const std::int64_t* keys, const Where& where,
                  Scratch& scratch, PartCells& out) const;
  // The weights of the values [first, first + n) of a row's `size` into scratch.numbers.
  void read_weights(const PartInput& input, std::int64_t row, std::int64_t size, std::int64_t first,
                    std::int64_t n, const Where& where, Scratch& scratch) const;
  [[noreturn]] void throw_bad(const Column& column, std::int64_t element, std::int64_t row,
                              const Where& where) const;

  CategoricalOptions options_;
};

// Strictly increasing numbers, also in the narrower forms that values may come in.
class CutPoints {
 public:
  explicit CutPoints(std::vector<double> cuts);

  std::int64_t size() const noexcept { return static_cast<std::int64_t>(cuts_.size()); }
  // Those that a column's numbers are compared with.
  const std::vector<double>& of(const Column& column, const Storage& storage) const;

 private:
  std::vector<double> cuts_;
  std::vector<double> as_float32_;
  std::vector<double> as_float16_;
};

// The bucket of a number, closed on the left, as id 2 + bucket. Of a vector each component has
// buckets of its own, those of the second behind those of the first: an id a component that is not
// null, or the missing id where all are.
class BucketizedPart final : public Part {
 public:
  BucketizedPart(std::string name, std::vector<double> boundaries, std::int64_t size)
      : Part(std::move(name)), boundaries_(std::move(boundaries)), size_(size) {}

  std::int64_t id_limit() const noexcept override { return kFirstKnownId + size_ * n_buckets(); }
  DictionaryTable dictionary_table(const Column&) const override { return {}; }
  void encode(const PartInput& input, std::int64_t row_begin, std::int64_t row_end,
              const Where& where, Scratch& scratch, PartCells& out) const override;

 private:
  std::int64_t n_buckets() const noexcept { return boundaries_.size() + 1; }
  void encode_vectors(const std::vector<double>& boundaries, std::int64_t n, const double* numbers,
                      PartCells& out) const;

  CutPoints boundaries_;
  std::int64_t size_;
};

// A number between the cut points k and k + 1 as the ids 2 + k and 2 + k + 1, weighed so that their
// weighted sum is linear between the two; one id at a cut point and beyond the outer ones.
class PiecewisePart final : public Part {
 public:
  PiecewisePart(std::string name, std::vector<double> cuts)
      : Part(std::move(name)), cuts_(std::move(cuts)) {}

  std::int64_t id_limit() const noexcept override { return kFirstKnownId + cuts_.size(); }
  bool has_values() const noexcept override { return true; }
  std::int64_t ids_per_value() const noexcept override { return 2; }
  DictionaryTable dictionary_table(const Column&) const override { return {}; }
  void encode(const PartInput& input, std::int64_t row_begin, std::int64_t row_end,
              const Where& where, Scratch& scratch, PartCells& out) const override;

 private:
  CutPoints cuts_;
};

// Of a list of `size` values at most `maxlen` are read: `n` from `first` on.
struct KeptRange {
  KeptRange(std::int64_t size, std::int64_t maxlen, bool keep_first)
      : n(std::min(size, maxlen)), first(keep_first ? 0 : size - n) {}
  std::int64_t n;
  std::int64_t first;
};

// Throws for lists that describe the same events but differ in length; a null list goes with a null
// list. The names are those of a feature and of both columns.
void check_parallel(const PartInput& input, std::int64_t row, const Where& where,
                    const std::string& feature, const std::string& column,
                    const std::string& parallel);

// The elements [begin, begin + n) of a column as numbers; null and NaN become NaN.
void read_element_numbers(const Column& column, const Storage& storage, std::int64_t begin,
                          std::int64_t n, Scratch& scratch, double* out, Status* status);

// `size` numbers a row of a numeric feature into scratch.numbers, row-major; a null gives NaN.
// Throws for text, infinities and lists of another length.
void read_feature_numbers(const Column& column, const Storage& storage, const std::string& feature,
                          std::int64_t size, std::int64_t row_begin, std::int64_t row_end,
                          const Where& where, Scratch& scratch);

}  // namespace widedeep::transform
