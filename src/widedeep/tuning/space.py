"""Which settings of a configuration are searched, and over what ranges."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from widedeep.errors import ConfigError, nearest
from widedeep.models.tower import registered_towers
from widedeep.optim import describe_optimizer, make_optimizer
from widedeep.training.config import RunConfig
from widedeep.training.defaults import (
    auto_batch_size,
    auto_epochs,
    embeddings_optimizer,
    make_optimizers,
)

if TYPE_CHECKING:
    import optuna

FLAT_MODELS = ("mlp", "dcn_v2")  # read embeddings and numbers alone, and learn quickly
_WIDTHS = ((64, 32), (128, 64), (256, 128), (512, 256), (256, 128, 64))
_DIMS = (4, 8, 16, 32)
_MOST_DROPOUT = 0.5
_RATE_SPAN, _PENALTY_SPAN = 5.0, 10.0  # given / span to given * span, on a logarithmic scale
_PENALTIES = ("l1", "l2", "weight_decay")
# Small tables learn well by it (docs/defaults.md, "The bare estimators").
_ADAM = {"optimizer": "adam", "lr": 0.003, "weight_decay": 1.0}
_GIVEN = "given"


class Space:
    """The settings that are searched around a configuration.

    A trial's parameters are plain numbers and words (``"deep.lr"``, ``"hidden_units"``); its
    settings are what these mean in a configuration, by section and key, None for a key left out.
    """

    def __init__(self, config: RunConfig, models: Sequence[str] | None) -> None:
        self.config = config
        towers = config.model.deep or ({"name": "mlp"},)
        self.has_wide, self.has_deep = bool(config.spec.wide_names), bool(config.spec.deep_names)
        hidden = config.model.hidden_units
        self.single = len(towers) == 1 and (not config.model.deep or not hidden)
        self.tower: Mapping[str, Any] = towers[0] if self.single else {"name": _GIVEN}
        if not config.model.deep:
            dropout = config.model.dropout
            self.tower = {"name": "mlp", "hidden_units": list(hidden or ()), "dropout": dropout}
        if models is None:
            models = FLAT_MODELS if self.tower["name"] in FLAT_MODELS else ()
        for name in models:
            if name not in registered_towers():
                raise ConfigError(
                    f"[tune] models: got {name!r}; {nearest(name, registered_towers())}"
                )
        self.models = tuple(dict.fromkeys([self.tower["name"], *models]))
        optimizers = make_optimizers(config.train)
        self.optimizers = {
            group: table
            for group, optimizer in optimizers._asdict().items()
            if "lr" in (table := describe_optimizer(optimizer))
            and (self.has_wide if group == "wide" else self.has_deep)
        }

    def resolve(self, rows: int, rate: float) -> None:
        """Search around the embeddings' optimizer that these rows and the model's rate mean.

        A table that names it is one of the user's own: what training leaves to itself stays as it
        would be only if its numbers are the same.
        """
        train = self.config.train
        if train.deep is not None or "deep" not in self.optimizers:
            return
        batch_size, epochs = train.batch_size, train.epochs
        if batch_size == "auto":
            batch_size = auto_batch_size(rows)
        if epochs == "auto":
            stops = train.early_stopping is not False
            epochs = auto_epochs(rows, batch_size, early_stopping=stops, quality=train.quality)
        optimizer = embeddings_optimizer(epochs, batch_size, rate=rate)
        self.optimizers["deep"] = describe_optimizer(optimizer)

    # ---- parameters ------------------------------------------------------------------------------

    def given(self) -> dict[str, Any]:
        """Return the parameters that mean the configuration as it is."""
        params: dict[str, Any] = {}
        if self.has_deep:
            params["embedding_dim"] = self.config.model.embedding_dim
            params["model"] = self.tower["name"]
            if self.tower.get("hidden_units"):
                params["hidden_units"] = _text(self.tower["hidden_units"])
            if "dropout" in self.tower:
                params["dropout"] = self.tower["dropout"]
        for group, table in self.optimizers.items():
            prefix = group
            if group == "dense":
                params["dense.optimizer"] = table["optimizer"]
                prefix = f"dense.{table['optimizer']}"
            params |= {f"{prefix}.{key}": table[key] for key in _searched(table)}
        return params

    def first(self) -> list[dict[str, Any]]:
        """Return the parameters to begin with: as given, another optimizer, the other models."""
        given = self.given()
        if not self.has_deep:
            return [given]
        others = []
        if "dense" in self.optimizers:
            adam = {f"dense.adam.{key}": _ADAM[key] for key in ("lr", "weight_decay")}
            others.append(given | {"dense.optimizer": "adam"} | adam)
        others += [(others or [given])[0] | {"model": name} for name in self.models[1:]]
        return [given, *(params for params in others if params != given)]

    def suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        """Draw a trial's parameters, and return what they mean."""
        settings: dict[str, Any] = {}
        if self.has_deep:
            settings |= self._suggest_model(trial)
        for group, table in self.optimizers.items():
            settings[f"train.{group}"] = self._suggest_optimizer(trial, group, table)
        return settings

    def _suggest_model(self, trial: optuna.Trial) -> dict[str, Any]:
        given = self.config.model.embedding_dim
        dims = [*dict.fromkeys([*_DIMS, given])]
        settings: dict[str, Any] = {
            "model.embedding_dim": trial.suggest_categorical("embedding_dim", dims)
        }
        name = trial.suggest_categorical("model", self.models)
        if name == _GIVEN:
            return settings
        options = dict(self.tower) if name == self.tower["name"] else {"name": name}
        fields = {field.name for field in dataclasses.fields(registered_towers()[name])}
        searched = fields if name != self.tower["name"] or options.get("hidden_units") else set()
        if "hidden_units" in searched:
            widths = [*_WIDTHS, tuple(self.tower.get("hidden_units") or _WIDTHS[0])]
            texts = [*dict.fromkeys(map(_text, widths))]
            text = trial.suggest_categorical("hidden_units", texts)
            options["hidden_units"] = [int(width) for width in text.split("-")]
        if "dropout" in searched:
            most = max(_MOST_DROPOUT, self.tower.get("dropout", 0.0))
            options["dropout"] = _short(trial.suggest_float("dropout", 0.0, most))
        if name == "mlp" and not self.config.model.deep:
            own = {key: options[key] for key in ("hidden_units", "dropout") if key in options}
            return settings | {f"model.{key}": value for key, value in own.items()}
        left_out = {"model.hidden_units": None, "model.dropout": None}
        return settings | left_out | {"model.deep": options}

    def _suggest_optimizer(
        self, trial: optuna.Trial, group: str, table: Mapping[str, Any]
    ) -> dict[str, Any]:
        prefix, ranges_of = group, table
        if group == "dense":
            names = [*dict.fromkeys([table["optimizer"], "adam"])]
            name = trial.suggest_categorical("dense.optimizer", names)
            prefix = f"dense.{name}"
            ranges_of = table if name == table["optimizer"] else _ADAM
        drawn = {
            key: _short(
                trial.suggest_float(f"{prefix}.{key}", value / span, value * span, log=True)
            )
            for key, (value, span) in _searched(ranges_of).items()
        }
        defaults = describe_optimizer(make_optimizer({"optimizer": ranges_of["optimizer"]}))
        own = {key: value for key, value in ranges_of.items() if value != defaults[key]}
        return {"optimizer": ranges_of["optimizer"], **own, **drawn}


def _searched(table: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Return the given value of each searched hyper-parameter, and the factor of its range."""
    penalties = [key for key in _PENALTIES if table.get(key, 0) > 0]
    return {
        key: (table[key], _RATE_SPAN if key == "lr" else _PENALTY_SPAN)
        for key in ["lr", *penalties]
    }


def _short(value: float) -> float:
    """A number as a person would write it; three digits say enough of a rate."""
    return float(f"{value:.3g}")


def _text(widths: Sequence[int]) -> str:
    return "-".join(map(str, widths))


def apply_settings(
    tables: Mapping[str, Any], settings: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Return a configuration's tables with a trial's settings in their places."""
    changed = {name: dict(table) for name, table in tables.items()}
    for place, value in settings.items():
        section, _, key = place.partition(".")
        table = changed.setdefault(section, {})
        table.pop(key, None)
        if value is not None:
            table[key] = value
    return changed
