// What a route's log is made of, and the Arrow columns that it reads.
#pragma once

#include <nanobind/nanobind.h>

#include <memory>
#include <string>

#include "arrow_input.hpp"
#include "impression_queue.hpp"

namespace widedeep {

class BoundShape {
 public:
  // `query` and `item` name (name, kind, whether it is a list); `items` are the ids of the
  // catalogue and the columns of `item`, as a record batch; a header stands for each kind of users.
  BoundShape(const std::string& user_column, nanobind::sequence query, nanobind::sequence item,
             nanobind::handle items, nanobind::bytes header_of_integers,
             nanobind::bytes header_of_texts);

  std::shared_ptr<LogShape> shape() const { return shape_; }

 private:
  std::unique_ptr<ArrowBatch> items_;
  std::shared_ptr<LogShape> shape_;
};

}  // namespace widedeep
