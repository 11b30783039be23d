#include <nanobind/nanobind.h>

#include "buffer_pool.hpp"
#include "cpu_features.hpp"
#include "thread_pool.hpp"

namespace nb = nanobind;

namespace widedeep {
// Each bind_*.cpp defines one of these.
void bind_blocks(nb::module_& m);
void bind_columns(nb::module_& m);
void bind_counts(nb::module_& m);
void bind_csv(nb::module_& m);
void bind_examples(nb::module_& m);
void bind_front(nb::module_& m);
void bind_impressions(nb::module_& m);
void bind_item_ids(nb::module_& m);
void bind_packed_rows(nb::module_& m);
void bind_pairs(nb::module_& m);
void bind_program(nb::module_& m);
void bind_ranker(nb::module_& m);
void bind_score(nb::module_& m);
void bind_sparse(nb::module_& m);
void bind_step(nb::module_& m);
void bind_tower(nb::module_& m);
void bind_transform(nb::module_& m);
void bind_updates(nb::module_& m);
void bind_wire(nb::module_& m);
}  // namespace widedeep

NB_MODULE(_native, m) {
  // What a user's globals hold until the process ends is no leak worth a page on the terminal.
  nb::set_leak_warnings(false);
  m.doc() = "The kernels of widedeep.";
  widedeep::active_isa();  // a wrong WIDEDEEP_ISA is told at import, not in the middle of a run
  m.def(
      "isa", [] { return widedeep::isa_name(widedeep::active_isa()); },
      "The instruction set of the dispatched kernels: 'baseline', 'avx2' or 'avx512'.");
  m.def("add_wakefulness", &widedeep::add_wakefulness,
        "Let threads without work look for more before they sleep (1), or no longer (-1).");
  m.def("keep_freed_memory", &widedeep::keep_freed_memory,
        "Let the C library keep freed blocks of up to 128 MB, 1 GB of them, for the next step.");
  widedeep::bind_blocks(m);
  widedeep::bind_columns(m);
  widedeep::bind_counts(m);
  widedeep::bind_csv(m);
  widedeep::bind_examples(m);
  widedeep::bind_impressions(m);
  widedeep::bind_front(m);
  widedeep::bind_item_ids(m);
  widedeep::bind_packed_rows(m);
  widedeep::bind_pairs(m);
  widedeep::bind_program(m);
  widedeep::bind_ranker(m);
  widedeep::bind_score(m);
  widedeep::bind_sparse(m);
  widedeep::bind_step(m);
  widedeep::bind_tower(m);
  widedeep::bind_transform(m);
  widedeep::bind_updates(m);
  widedeep::bind_wire(m);
}
