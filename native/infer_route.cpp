#include "infer_route.hpp"

#include <bit>
#include <cmath>
#include <exception>
#include <utility>

#include "json_number.hpp"

namespace widedeep {
namespace {

InferNames infer_names(const InferOptions& options) {
  std::vector<std::string> columns;
  for (const int column : options.columns) {
    columns.push_back(options.program->plan->columns[static_cast<std::size_t>(column)]);
  }
  return {{std::move(columns), {}}, options.is_nested, options.outputs};
}

void append_bytes(double value, std::string& out) {
  const auto bits = std::bit_cast<std::uint64_t>(value);
  for (int shift = 0; shift < 64; shift += 8) out += static_cast<char>(bits >> shift & 255);
}

}  // namespace

InferRoute::InferRoute(InferOptions options)
    : options_(std::move(options)), names_(infer_names(options_)) {
  head_ = "{\"model_name\":";
  append_json(options_.model, head_);
  head_ += ",\"model_version\":";
  append_json(options_.version, head_);
  for (const std::string& name : options_.outputs) {
    std::string& head = output_heads_.emplace_back("{\"name\":");
    append_json(name, head);
    head += ",\"datatype\":\"FP64\",\"shape\":[";
  }
}

bool InferRoute::score(InferRoom& room) const {
  const std::int64_t n_rows = room.reader.n_rows();
  const transform::Plan& plan = *options_.program->plan;
  const Scorer& scorer = *options_.scorer;
  const auto width = static_cast<std::size_t>(scorer.n_classes());
  const std::size_t size = static_cast<std::size_t>(n_rows) * width;
  room.logits.resize(size);
  room.deep.assign(size, 0.0F);
  try {
    plan.check_values(room.reader.n_values());
    plan.check_values(static_cast<std::int64_t>(size));
    transform::InputBatch batch;
    batch.n_rows = n_rows;
    batch.columns.assign(plan.columns.size(), nullptr);
    for (std::size_t c = 0; c < options_.columns.size(); ++c) {
      batch.columns[static_cast<std::size_t>(options_.columns[c])] = &room.reader.columns()[c];
    }
    const transform::Encoded rows = transform::run(*options_.program, {batch}, {}, 1);
    plan.check_values(rows.n_ids + n_rows * rows.n_dense);
    const CsrBatch csr = {rows.ids.get(),
                          rows.offsets.get(),
                          rows.has_values ? rows.values.get() : nullptr,
                          rows.n_ids,
                          n_rows,
                          scorer.n_slots()};
    scorer.forward({csr, rows.dense.get(), scorer.n_dense()}, options_.threads, room.logits.data(),
                   scorer.has_deep() ? room.deep.data() : nullptr);
  } catch (const std::exception&) {
    return false;  // the full server meets the same, and says what is wrong
  }
  for (std::size_t i = 0; i < size; ++i) {
    room.logits[i] += room.deep[i];
    room.logits[i] += options_.bias[i % width];
  }
  room.scores.resize(options_.curves.size());
  for (std::size_t head = 0; head < options_.curves.size(); ++head) {
    std::vector<double>& scores = room.scores[head];
    scores.clear();
    for (std::size_t at = 0; at < size; at += width) {
      scores.push_back(options_.curves[head].score(room.logits.data() + at));
      if (!std::isfinite(scores.back())) return false;
    }
  }
  return true;
}

void InferRoute::write(const InferRoom& room, std::string& json, std::string& bytes) const {
  json += head_;
  if (!room.reader.id().empty()) {
    json += ",\"id\":\"";
    json += room.reader.id();
    json += '"';
  }
  json += ",\"outputs\":[";
  for (const InferOutput& output : room.reader.outputs()) {
    const std::vector<double>& scores = room.scores[output.index];
    json += output_heads_[output.index] + std::to_string(scores.size());
    if (output.is_binary) {
      json += "],\"parameters\":{\"binary_data_size\":" + std::to_string(8 * scores.size()) + "}},";
      for (const double score : scores) append_bytes(score, bytes);
      continue;
    }
    json += "],\"data\":[";
    for (const double score : scores) {
      append_number(score, json);
      json += ',';
    }
    json.back() = ']';
    json += "},";
  }
  json.back() = ']';
  json += '}';
}

}  // namespace widedeep
