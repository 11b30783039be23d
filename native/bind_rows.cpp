#include "bind_rows.hpp"

#include <nanobind/stl/string.h>

namespace nb = nanobind;

namespace widedeep {
namespace {

bool is_list(nb::handle cell) {
  if (PyList_Check(cell.ptr()) || PyTuple_Check(cell.ptr())) return true;
  const bool is_text = PyUnicode_Check(cell.ptr()) || PyBytes_Check(cell.ptr());
  return !is_text && PySequence_Check(cell.ptr()) != 0 && PyObject_Length(cell.ptr()) >= 0;
}

}  // namespace

ColumnNames::ColumnNames(std::vector<std::string> names) : names_(std::move(names)) {
  for (const std::string& name : names_) {
    PyObject* key = nb::str(name.c_str(), name.size()).release().ptr();
    PyUnicode_InternInPlace(&key);  // most keys of dicts are: they are found by their address
    keys_.push_back(nb::steal<nb::str>(key));
  }
}

RowColumns::RowColumns(nb::handle rows, const ColumnNames& columns, nb::callable plain,
                       const Origin& origin, const transform::Plan* plan)
    : plain_(std::move(plain)),
      plan_(plan),
      stores_(columns.names().size()),
      absent_(columns.names().size(), 0),
      origin_(origin) {
  for (nb::handle row : rows) {
    row_ = n_rows_++;
    for (std::size_t c = 0; c < stores_.size(); ++c) {
      name_ = &columns.names()[c];
      PyObject* cell = PyDict_GetItemWithError(row.ptr(), columns.key(c).ptr());
      if (cell == nullptr) {
        if (PyErr_Occurred() != nullptr) throw nb::python_error();
        ++absent_[c];
        cell = Py_None;
      }
      append_cell(cell, stores_[c]);
    }
  }
  for (Store& store : stores_) finish(store);
}

void RowColumns::append_cell(nb::handle cell, Store& store) {
  if (store.validity.size() * 8 <= static_cast<std::size_t>(row_)) store.validity.push_back(0);
  if (!cell.is_none()) {
    store.validity.back() = static_cast<std::uint8_t>(store.validity.back() | 1 << (row_ & 7));
  }
  if (is_list(cell)) {
    store.has_lists = true;
    add_values(PyObject_Length(cell.ptr()));
    for (nb::handle item : cell) append_value(item, store, true);
  } else {
    add_values(1);
    PyErr_Clear();  // a scalar that claims to be a sequence has no length
    append_value(cell, store, true);
  }
  store.ends.push_back(static_cast<std::int64_t>(store.values.size()));
}

void RowColumns::add_values(std::int64_t n) {
  n_values_ += n;
  if (plan_ != nullptr) plan_->check_values(n_values_);
}

void RowColumns::append_text(const char* data, std::int64_t length, Store& store) {
  Variant value{};
  value.tag = Variant::Tag::text;
  value.length = length;
  value.integer = static_cast<std::int64_t>(store.text.size());  // a pointer once all is read
  store.text.append(data, static_cast<std::size_t>(length));
  store.values.push_back(value);
}

// False if the integer needs more than 64 bits.
bool RowColumns::append_integer(nb::handle object, Store& store) {
  Variant value{};
  int overflow = 0;
  value.tag = Variant::Tag::integer;
  value.integer = PyLong_AsLongLongAndOverflow(object.ptr(), &overflow);
  if (overflow > 0) {
    value.tag = Variant::Tag::unsigned_integer;
    const unsigned long long bits = PyLong_AsUnsignedLongLong(object.ptr());
    value.integer = static_cast<std::int64_t>(bits);
    if (PyErr_Occurred() == nullptr) overflow = 0;
    PyErr_Clear();
  }
  if (overflow == 0) store.values.push_back(value);
  return overflow == 0;
}

void RowColumns::append_value(nb::handle object, Store& store, bool may_convert) {
  Variant value{};
  PyObject* const p = object.ptr();
  if (p == Py_None) {
    store.values.push_back(value);
  } else if (PyUnicode_Check(p)) {
    Py_ssize_t length = 0;
    const char* const text = PyUnicode_AsUTF8AndSize(p, &length);
    if (text == nullptr) {
      PyErr_Clear();
      refuse(object, "text of whole characters (this holds half of a surrogate pair); correct it");
    }
    append_text(text, length, store);
  } else if (PyBool_Check(p)) {
    value.tag = Variant::Tag::boolean;
    value.integer = p == Py_True ? 1 : 0;
    store.values.push_back(value);
  } else if (PyFloat_Check(p)) {
    value.tag = Variant::Tag::real;
    value.real = PyFloat_AsDouble(p);
    store.values.push_back(value);
  } else if (PyLong_Check(p) && append_integer(object, store)) {
    return;
  } else if (PyBytes_Check(p)) {
    append_text(PyBytes_AsString(p), PyBytes_Size(p), store);
  } else {
    const nb::object converted = may_convert ? plain_(object) : nb::borrow(Py_NotImplemented);
    if (converted.ptr() == Py_NotImplemented) {
      refuse(object,
             "None, bool, int of at most 64 bits, float, str, bytes, a date, or a list of these; "
             "convert it");
    }
    append_value(converted, store, false);
    // A subclass of int: microseconds since 1970.
    const bool is_time = PyLong_Check(converted.ptr()) && !PyLong_CheckExact(converted.ptr());
    if (is_time && !PyBool_Check(converted.ptr())) store.values.back().tag = Variant::Tag::time;
  }
}

void RowColumns::refuse(nb::handle object, const std::string& expected) const {
  const auto shown = nb::cast<std::string>(nb::repr(object));
  const auto type = nb::cast<std::string>(object.type().attr("__name__"));
  throw InputError(InputError::Kind::feature,
                   "column " + quoted(*name_) + " (" + row_text(origin_, row_) + "): got " +
                       (shown.size() > 80 ? shown.substr(0, 77) + "..." : shown) + " (" + type +
                       "), expected " + expected);
}

void RowColumns::finish(Store& store) {
  for (Variant& value : store.values) {
    if (value.tag == Variant::Tag::text) value.text = store.text.data() + value.integer;
  }
  Column column;
  column.length = n_rows_;
  column.values.type = Physical::variant;
  column.values.data = store.values.data();
  column.values.length = static_cast<std::int64_t>(store.values.size());
  if (store.has_lists) {
    column.list = ListLayer::list64;
    column.list_validity = store.validity.data();
    store.ends.insert(store.ends.begin(), 0);
    column.list_offsets = store.ends.data();
  }
  columns_.push_back(column);
}

}  // namespace widedeep
