// The losses for Python; widedeep.kernels.tower checks the arrays.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include "losses.hpp"

namespace nb = nanobind;

namespace widedeep {
namespace {

using Vector = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using ConstVector = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

void bind_logistic(const ConstVector& logits, const ConstVector& labels, const Vector& losses,
                   const Vector& grads) {
  logistic_loss(logits.data(), labels.data(), static_cast<int64_t>(logits.shape(0)), losses.data(),
                grads.data());
}

}  // namespace

void bind_losses(nb::module_& m) {
  m.def("logistic_loss", &bind_logistic, nb::call_guard<nb::gil_scoped_release>());
}

}  // namespace widedeep
