"""Options of a run over several processes: ``[distributed]`` in a TOML file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from widedeep.errors import ConfigError
from widedeep.options import COUNT, COUNTS, check_range, check_types, read_section

__all__ = ["DistributedConfig"]

Wire = Literal["fp32", "bf16"]
_TIMEOUT = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(s|m|h)")
_SECONDS = {"s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True, kw_only=True, slots=True)
class DistributedConfig:
    """How one model is trained by several processes, its ranks.

    Args:
        lanes: Parts into which each batch is cut, at least 1. Sums over a batch are added as a
            tree of halves of the lanes, so that a result depends on ``lanes`` and never on the
            number of ranks; each rank computes some of them. Set it once, to the most ranks that
            will ever be used, such as 24. ``batch_size`` is a multiple of it.
        wire: Numbers in which rows and gradients travel: ``"fp32"``, or ``"bf16"`` for half the
            bytes, which changes results by its rounding. Gradients travel in bfloat16 then,
            embeddings in 16 bits a number and an exponent a row; the wide part's stay float32.
        timeout: How long a rank waits for the others before it gives up: a number with a unit
            (s, m, h), at least 1 s.
        part_bytes: Most bytes of a bundle's weights in one file, at least 1 MiB: larger weights
            are written in parts (``weights-00001-of-00008.safetensors``), mapped and scored as one.

    Example:
        >>> DistributedConfig(lanes=6, timeout="2m").timeout_seconds
        120.0
    """

    lanes: int = 1
    wire: Wire = "fp32"
    timeout: str = "120s"
    part_bytes: int = 16 << 30

    def __post_init__(self) -> None:
        owner = "[distributed]"
        check_types(self, owner)
        check_range(owner, "lanes", self.lanes, self.lanes in COUNTS, COUNT)
        allowed = "a number with a unit (s, m, h) such as '120s', at least 1 s"
        least = self.part_bytes >= 1 << 20
        check_range(owner, "part_bytes", self.part_bytes, least, "an integer of at least 1,048,576")
        check_range(owner, "timeout", self.timeout, self.timeout_seconds >= 1, allowed)

    @property
    def timeout_seconds(self) -> float:
        """The timeout in seconds; NaN if it cannot be read."""
        match = _TIMEOUT.fullmatch(self.timeout.strip())
        return float(match[1]) * _SECONDS[match[2]] if match else float("nan")


def as_distributed(value: DistributedConfig | Mapping[str, Any] | None) -> DistributedConfig:
    """Return options of a run over several processes, given as such, as a table, or not at all.

    Raises:
        ConfigError: For another object, an unknown key or a value that is refused.
    """
    if value is None:
        return DistributedConfig()
    if isinstance(value, Mapping):
        return read_section(DistributedConfig, value, "[distributed]")
    if not isinstance(value, DistributedConfig):
        raise ConfigError(
            f"got distributed={value!r}, expected wd.config.DistributedConfig(lanes=24) or "
            "{'lanes': 24}"
        )
    return value
