#include "bind_impressions.hpp"

#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>

#include <cstdint>
#include <stdexcept>
#include <utility>
#include <vector>

#include "bind_arrays.hpp"
#include "impression_file.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace widedeep {
namespace {

constexpr std::array<const char*, 5> kKinds = {"text", "integer", "real", "real32", "boolean"};
constexpr parquet::Physical kPhysical[] = {parquet::Physical::text, parquet::Physical::int64,
                                           parquet::Physical::real, parquet::Physical::real32,
                                           parquet::Physical::boolean};
constexpr std::array<const char*, 9> kSources = {
    "request_id", "user_id", "item_id", "position", "time", "constant", "score", "query", "item"};

std::string as_string(nb::handle bytes) {
  const auto held = nb::cast<nb::bytes>(bytes);
  return std::string(held.c_str(), held.size());
}

nb::bytes as_bytes(const std::string& text) { return nb::bytes(text.data(), text.size()); }

LogColumn log_column(nb::handle column) {
  LogColumn plain;
  plain.kind = static_cast<LogKind>(named(kKinds, nb::cast<std::string>(column[1])));
  plain.is_list = nb::cast<bool>(column[2]);
  return plain;
}

// Source, name, kind, whether it is a time, whether it is a list, the constant's bytes.
LogFileColumn file_column(nb::handle column) {
  LogFileColumn plain;
  plain.source = static_cast<LogSource>(named(kSources, nb::cast<std::string>(column[0])));
  plain.column.name = nb::cast<std::string>(column[1]);
  plain.column.type =
      kPhysical[static_cast<std::size_t>(named(kKinds, nb::cast<std::string>(column[2])))];
  plain.column.is_time = nb::cast<bool>(column[3]);
  plain.column.is_list = nb::cast<bool>(column[4]);
  plain.constant = as_string(nb::borrow(column[5]));
  return plain;
}

std::shared_ptr<ImpressionQueue> new_queue(double sample, nb::bytes hash_key,
                                           std::size_t most_bytes, bool waits) {
  LogOptions options;
  options.sample = sample;
  options.hash_key = as_string(hash_key);
  options.most_bytes = most_bytes;
  options.waits = waits;
  return std::make_shared<ImpressionQueue>(std::move(options));
}

// (header, chunk, requests, rows)
nb::list take(ImpressionQueue& queue) {
  nb::list found;
  for (const ImpressionQueue::Chunk& chunk : queue.take()) {
    found.append(
        nb::make_tuple(as_bytes(chunk.header), as_bytes(chunk.bytes), chunk.requests, chunk.rows));
  }
  return found;
}

void bind_file(nb::module_& m) {
  nb::class_<ImpressionFile>(m, "ImpressionFile")
      .def(
          "__init__",
          [](ImpressionFile* self, nb::sequence columns, const std::string& arrow_schema) {
            std::vector<LogFileColumn> plain;
            for (nb::handle column : columns) plain.push_back(file_column(column));
            new (self) ImpressionFile(std::move(plain), arrow_schema);
          },
          "columns"_a, "arrow_schema"_a)
      .def(
          "add",
          [](ImpressionFile& self, nb::bytes chunk) {
            std::string bytes = as_string(chunk);
            const nb::gil_scoped_release release;
            return self.add(std::move(bytes));
          },
          "chunk"_a)
      .def_prop_ro("rows", &ImpressionFile::rows)
      .def_prop_ro("is_full", &ImpressionFile::is_full)
      .def(
          "column_chunk",
          [](ImpressionFile& self, std::size_t column, std::int64_t offset) {
            std::string bytes;
            {
              const nb::gil_scoped_release release;
              bytes = self.column_chunk(column, offset);
            }
            return as_bytes(bytes);
          },
          "column"_a, "offset"_a)
      .def("end_group", &ImpressionFile::end_group, nb::call_guard<nb::gil_scoped_release>())
      .def("footer", [](const ImpressionFile& self) { return as_bytes(self.footer()); });
}

}  // namespace

BoundShape::BoundShape(const std::string& user_column, nb::sequence query, nb::sequence item,
                       nb::handle items, nb::bytes header_of_integers, nb::bytes header_of_texts)
    : shape_(std::make_shared<LogShape>()) {
  const ArrowCapsules capsules(items);
  items_ = std::make_unique<ArrowBatch>(capsules.schema, capsules.array);
  shape_->user_column = user_column;
  for (nb::handle column : query) {
    shape_->query_names.push_back(nb::cast<std::string>(column[0]));
    shape_->query_columns.push_back(log_column(column));
  }
  for (nb::handle column : item) shape_->item_columns.push_back(log_column(column));
  expect(items_->columns().size() == shape_->item_columns.size() + 1,
         "expected the ids, and a column an item's name");
  shape_->items = &items_->columns();
  shape_->n_items = items_->length();
  const nb::bytes headers[] = {header_of_integers, header_of_texts};
  for (std::size_t kind = 0; kind < 2; ++kind) {
    auto stream = std::make_shared<LogStream>();
    stream->header = as_string(headers[kind]);
    shape_->streams[kind] = std::move(stream);
  }
}

void bind_impressions(nb::module_& m) {
  nb::class_<BoundShape>(m, "LogShape")
      .def(nb::init<const std::string&, nb::sequence, nb::sequence, nb::handle, nb::bytes,
                    nb::bytes>(),
           "user_column"_a, "query"_a, "item"_a, "items"_a, "header_of_integers"_a,
           "header_of_texts"_a);
  nb::class_<ImpressionQueue>(m, "ImpressionQueue")
      .def(nb::new_(&new_queue), "sample"_a, "hash_key"_a, "most_bytes"_a, "waits"_a)
      .def("take", &take)
      .def("counts",
           [](const ImpressionQueue& self) {
             const LogCounts counts = self.counts();
             return nb::make_tuple(counts.offered, counts.left_out, counts.without_user,
                                   counts.dropped, counts.dropped_rows);
           })
      .def("close", &ImpressionQueue::close);
  bind_file(m);
}

}  // namespace widedeep
