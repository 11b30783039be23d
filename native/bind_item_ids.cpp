#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bind_ranker.hpp"
#include "bind_score.hpp"
#include "vocabulary.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace widedeep {
namespace {

// A negative length for what is no text, and for text that is no Unicode.
TextSpan text_of(PyObject* id) {
  if (!PyUnicode_Check(id)) return {nullptr, -1};
  Py_ssize_t length = 0;
  const char* const text = PyUnicode_AsUTF8AndSize(id, &length);
  if (text != nullptr) return {text, length};
  PyErr_Clear();
  return {nullptr, -1};
}

// False for what is no integer of 64 bits.
bool integer_of(PyObject* id, std::int64_t* value) {
  if (!PyLong_Check(id)) return false;
  int overflow = 0;
  *value = PyLong_AsLongLongAndOverflow(id, &overflow);
  return overflow == 0;
}

// The places of a catalogue's ids, all of them text or all integers.
class ItemIds {
 public:
  explicit ItemIds(const nb::list& ids) {
    const auto n = static_cast<std::int64_t>(nb::len(ids));
    std::vector<std::int64_t> integers(static_cast<std::size_t>(n));
    is_text_ = n == 0 || PyUnicode_Check(ids[0].ptr());
    offsets_.push_back(0);
    for (std::int64_t i = 0; i < n; ++i) {
      PyObject* const id = PyList_GetItem(ids.ptr(), i);
      const TextSpan text = text_of(id);
      const bool good =
          is_text_ ? text.length >= 0 : integer_of(id, &integers[static_cast<std::size_t>(i)]);
      expect(good, "expected ids of text, or of integers of 64 bits");
      if (is_text_) bytes_.append(text.data, static_cast<std::size_t>(text.length));
      offsets_.push_back(static_cast<std::int64_t>(bytes_.size()));
    }
    if (is_text_) {
      texts_ = std::make_unique<TextVocabulary>(offsets_.data(), bytes_.data(), n);
    } else {
      integers_ = std::make_unique<IntegerVocabulary>(integers.data(), n);
    }
  }

  void lend(RankModel& model) const {
    model.texts = texts_.get();
    model.integers = integers_.get();
  }

  // The place of each id, -1 for what is not there; and whether all are.
  nb::tuple find(const nb::list& ids) const {
    const std::size_t n = nb::len(ids);
    std::vector<std::int64_t> places(n);
    is_text_ ? find_texts(ids, places) : find_integers(ids, places);
    const bool all = std::all_of(places.begin(), places.end(), [](auto at) { return at >= 0; });
    return nb::make_tuple(to_array(std::move(places)), all);
  }

 private:
  void find_texts(const nb::list& ids, std::vector<std::int64_t>& places) const {
    std::vector<TextSpan> asked(places.size());
    for (std::size_t i = 0; i < places.size(); ++i) {
      asked[i] = text_of(PyList_GetItem(ids.ptr(), static_cast<Py_ssize_t>(i)));
    }
    texts_->find(asked.data(), static_cast<std::int64_t>(asked.size()), places.data());
  }

  void find_integers(const nb::list& ids, std::vector<std::int64_t>& places) const {
    std::vector<std::size_t> strangers;
    for (std::size_t i = 0; i < places.size(); ++i) {
      PyObject* const id = PyList_GetItem(ids.ptr(), static_cast<Py_ssize_t>(i));
      if (!integer_of(id, &places[i])) strangers.push_back(i);
    }
    integers_->find(places.data(), static_cast<std::int64_t>(places.size()), places.data());
    for (const std::size_t i : strangers) places[i] = -1;
  }

  bool is_text_ = true;
  std::vector<std::int64_t> offsets_;
  std::string bytes_;
  std::unique_ptr<TextVocabulary> texts_;
  std::unique_ptr<IntegerVocabulary> integers_;
};

}  // namespace

void lend_ids(nb::handle ids, RankModel& model) { nb::cast<const ItemIds&>(ids).lend(model); }

void bind_item_ids(nb::module_& m) {
  nb::class_<ItemIds>(m, "ItemIds")
      .def(nb::init<const nb::list&>(), "ids"_a)
      .def("find", &ItemIds::find, "ids"_a);
}

}  // namespace widedeep
