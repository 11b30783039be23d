// What the native server reads of a ranker and a catalogue that Python made.
#pragma once

#include <nanobind/nanobind.h>

#include "rank_route.hpp"

namespace widedeep {

// Of a TransformSides, a RankScorer and the PartialSums of its items, or none, which must outlive
// it; without bias, ids and numbers.
RankModel lent_model(nanobind::handle sides, nanobind::handle scorer, nanobind::handle items);

// Adds the ids of an ItemIds, which must outlive the model.
void lend_ids(nanobind::handle ids, RankModel& model);

}  // namespace widedeep
