"""Parts of a model by name: which ones are frozen, and which learn at rates of their own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from widedeep.errors import ConfigError, nearest
from widedeep.models.wide_deep import WideDeep
from widedeep.tables.row_rules import RowRule
from widedeep.training.config import TrainConfig
from widedeep.training.previous_model import name_of_module


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What ``freeze`` and ``rates`` of a configuration mean for a model."""

    frozen: frozenset[str]  # ``wide/FEATURE``, ``table/TABLE``, and names of dense tensors
    rates: Mapping[str, float]  # Factor of the learning rate, by the same names

    @property
    def frozen_tables(self) -> list[str]:
        """Frozen tables of embeddings."""
        return [n.removeprefix("table/") for n in sorted(self.frozen) if n.startswith("table/")]

    def set_rules(self, model: WideDeep) -> None:
        """Give the tables the rules of their rows."""
        options = {slot.table: slot.embedding for slot in model.schema.slots if slot.deep}
        for table in model.deep_tables.values():
            rules = {
                name: RowRule(
                    rate=self.rates.get(f"table/{name}", 1.0),
                    l2=options[name].l2,
                    max_norm=options[name].max_norm,
                )
                for name in table.sizes
            }
            table.rules = _that_differ(rules)
        if model.wide_table is not None:
            rules = {
                name: RowRule(
                    rate=self.rates.get(f"wide/{name}", 1.0), frozen=f"wide/{name}" in self.frozen
                )
                for name in model.wide_table.sizes
            }
            model.wide_table.rules = _that_differ(rules)


def _that_differ(rules: Mapping[str, RowRule]) -> dict[str, RowRule]:
    return {name: rule for name, rule in rules.items() if rule != RowRule()}


def model_parts(model: WideDeep, config: TrainConfig) -> Parts:
    """Match the patterns of ``freeze`` and ``rates`` with a model's parts.

    Raises:
        ConfigError: If a pattern matches nothing, or nothing is left to be trained.
    """
    names = dict(_names(model))
    frozen = {name for p in config.freeze for name in _matches(p, names, "freeze")}
    frozen |= {f"table/{name}" for name in model.declared_frozen}
    rates: dict[str, float] = {}
    for pattern, rate in config.rates.items():
        rates.update(dict.fromkeys(_matches(pattern, names, "rates"), float(rate)))
    if frozen >= names.keys():
        raise ConfigError("[train]: got freeze patterns that leave nothing to train; drop some")
    return Parts(frozen=frozenset(frozen), rates=rates)


def _names(model: WideDeep) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield each part's name and all names that patterns may give it."""
    if model.wide_table is not None:
        for name in model.wide_table.sizes:
            yield f"wide/{name}", (f"wide/{name}",)
    for table in model.embedding_tables:
        for name in table.sizes:
            yield f"table/{name}", (f"table/{name}",)
    for key in model.dense_state():
        yield key, (key, name_of_module(key))


def _matches(pattern: str, names: Mapping[str, Iterable[str]], option: str) -> list[str]:
    matches = [
        part for part, aliases in names.items() if any(fnmatchcase(a, pattern) for a in aliases)
    ]
    if not matches:
        raise ConfigError(
            f"[train] {option}: got {pattern!r}, which matches no part of the model; "
            f"{nearest(pattern, names)}"
        )
    return matches
