"""Native routes: versions made ready to answer plain requests for rankings without Python."""

from __future__ import annotations

import math

from widedeep.bundle import Bundle, Platt, PriorCorrection
from widedeep.features.sides import item_columns
from widedeep.kernels.front import RankRoute
from widedeep.serving.candidates import chosen_head
from widedeep.serving.factored import FactoredForward
from widedeep.serving.ranker import Ranker
from widedeep.serving.score_bins import SCORE_EDGES


def new_route(ranker: Ranker, version: str) -> RankRoute | None:
    """Return what answers plain requests natively, with the very scores of the ranker."""
    loaded, engine = ranker._loaded, ranker._engine
    if loaded is None or not isinstance(engine, FactoredForward):
        return None
    curve = _curve(ranker.bundle)
    if curve is None or len(loaded.catalogue) == 0:
        return None
    options = {
        "version": version,
        "catalogue_version": loaded.catalogue.version,
        "foreign_names": sorted(item_columns(ranker.bundle.schema.spec)),
        "score_edges": list(SCORE_EDGES),
        "threads": ranker.threads,
        **curve,
    }
    return RankRoute(
        engine._transform,
        engine._scorer,  # type: ignore[arg-type]  # the protocol's native class
        loaded.items.sums,
        engine._bias_C,
        loaded.catalogue._places,
        options,
    )


def _curve(bundle: Bundle) -> dict[str, object] | None:
    """Return how the logits of the head that is ranked by become scores."""
    heads = {head.name: head for head in bundle.model.heads}
    kinds = {name: head.kind for name, head in heads.items()}
    if all(kind == "multiclass" for kind in kinds.values()):
        return None
    head = heads[chosen_head(kinds, None)]
    if head.link not in ("identity", "sigmoid"):
        return None
    slope, intercept = 1.0, 0.0
    calibration = bundle.calibration.get(head.name)
    if isinstance(calibration, Platt):
        slope, intercept = calibration.slope, calibration.intercept
    elif isinstance(calibration, PriorCorrection):
        intercept = math.log(calibration.rate)
    elif calibration is not None:
        return None
    return {
        "column": head.start,
        "is_probability": head.link == "sigmoid",
        "slope": slope,
        "intercept": intercept,
    }
