"""A small log for tests of the join, and its configuration."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

from widedeep.join import (
    ActionLog,
    Attributes,
    History,
    ImpressionLog,
    JoinConfig,
    Label,
    Negatives,
)

START = 1_700_000_000
Row = dict[str, Any]


def impressions(requests: int = 100, seed: int = 0) -> list[Row]:
    draw = random.Random(seed)
    return [
        {
            "request_id": f"r{request}",
            "user_id": f"u{request % 7}",
            "item_id": draw.randrange(9),
            "position": position,
            "event_time": START + request * 100,
            "device": draw.choice(["phone", "desk", None]),
            "shown_before": draw.choice([None, 3]),
        }
        for request in range(requests)
        for position in range(4)
    ]


def actions(count: int = 300, seed: int = 1) -> list[Row]:
    draw = random.Random(seed)
    return [
        {
            "user_id": f"u{draw.randrange(7)}",
            "item_id": draw.randrange(9),
            "event_time": START + draw.randrange(10_000),
            "kind": draw.choice(["click", "buy"]),
            "price": draw.random() * 10,
        }
        for _ in range(count)
    ]


def config(output: Path, **changes: Any) -> JoinConfig:
    users = [
        {"user_id": f"u{user}", "since": START + version * 3000, "age": user * 10 + version}
        for user in range(5)
        for version in range(3)
    ]
    items = [{"item_id": item, "brand": f"b{item % 3}"} for item in range(8)]
    base = JoinConfig(
        output=str(output),
        impressions=ImpressionLog(path=impressions(), position="position"),
        actions=ActionLog(path=actions(), kind="kind", value="price"),
        user_attributes=Attributes(path=users, key="user_id", valid_from="since"),
        item_attributes=Attributes(path=items, key="item_id"),
        labels=(
            Label(name="click", kinds=("click",), window="10m"),
            Label(name="spend", kinds=("buy",), window="5m", value=True),
        ),
        history=(
            History(name="last_items", feature="last", k=3),
            History(name="shown_before", feature="count", of="impressions"),
            History(name="item_rate", feature="rate", by="item", prior=0.1, strength=5.0),
            History(name="pair_since", feature="since", by="pair", window="1h"),
        ),
        negatives=Negatives(rate=0.5),
        threads=1,
    )
    return dataclasses.replace(base, **changes)
