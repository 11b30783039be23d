"""Heads of a model, made from names, tables or heads, and checked against the schema's labels."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from widedeep.bundle.layout import LINKS
from widedeep.errors import ConfigError, nearest
from widedeep.models.head_base import HEAD_KINDS, Head, definer, registered_heads
from widedeep.models.heads import Binary, FunctionHead, Multiclass
from widedeep.models.losses import loss_path, registered_losses
from widedeep.options import as_table, check_types, read_section
from widedeep.schema import Schema

HeadTable = Mapping[str, Any]
HeadChoice = str | Head | HeadTable | None
"""A name that a head is registered by, a head, a table ``{"kind": name, ...}``, or one of these by
label."""


def make_heads(schema: Schema, choice: HeadChoice) -> tuple[Head, ...]:
    """Return the heads of a model, in the order of the schema's labels.

    Args:
        schema: Gives the labels' names and classes.
        choice: A head, its name or its table for every label, one for each by name, or None: binary
            for numbers and two classes, multi-class for more, multi-label for lists.

    Raises:
        ConfigError: For an unknown kind, or a name that is no label's.
    """
    labels = schema.spec.labels or {"": "label"}
    by_name = isinstance(choice, Mapping) and not is_head_table(choice, labels)
    if isinstance(choice, Mapping) and by_name:
        for name in choice:
            if name not in labels:
                raise ConfigError(
                    f"got a head for {name!r}, which is no label; {nearest(name, labels)}"
                )
    heads = []
    for name in labels:
        head_choice = choice.get(name) if isinstance(choice, Mapping) and by_name else choice
        heads.append(_make_head(schema, name, head_choice))
    for head in heads:
        _check_through(head, {other.name: other for other in heads})
    return tuple(heads)


def is_head_table(choice: Mapping[str, Any], labels: Collection[str]) -> bool:
    """Tell a table of one head from a table of heads by label, of which one may be 'kind'."""
    if all(name in labels for name in choice):
        return False
    return isinstance(choice.get("kind"), str) and not isinstance(choice.get("loss"), Mapping)


def head_from_table(table: HeadTable, name: str = "") -> Head:
    """Read a head's table: ``kind``, which names it, and its options."""
    owner = f"head {name!r}" if name else "head"
    options = {key: value for key, value in table.items() if key != "kind"}
    kind, loss = table.get("kind"), table.get("loss")
    if "name" in options:
        raise ConfigError(f"{owner}: got the key 'name'; a head has the name of its label")
    cls = registered_heads().get(str(kind))
    builtin = [field.default for field in fields(cls or Head) if field.name == "loss"]
    own = callable(loss) or (isinstance(loss, str) and loss in registered_losses())
    if kind in HEAD_KINDS and (own or (loss is not None and not builtin)):
        cls, options = FunctionHead, dict(table)
    if cls is None:
        raise ConfigError(f"{owner}: got kind={kind!r}; {nearest(str(kind), registered_heads())}")
    head = read_section(cls, options, owner)
    check_types(head, owner)
    return replace(head, name=name)


def head_table(head: Head) -> str | dict[str, Any] | None:
    """Return what :func:`head_from_table` reads, the name alone for a head as it is by default.

    None for a head that no name stands for.
    """
    table = _changed_options(head)
    if type(head) is FunctionHead:
        return {"kind": head.kind, **table} if isinstance(head.loss, str) else None
    name = next((name for name, cls in registered_heads().items() if cls is type(head)), None)
    if name is None:
        return None
    return {"kind": name, **table} if table else name


def _changed_options(head: Head) -> dict[str, Any]:
    values = as_table(head)
    return {
        field.name: values[field.name]
        for field in fields(head)
        if field.name not in ("name", "kind") and getattr(head, field.name) != field.default
    }


def _make_head(schema: Schema, name: str, choice: HeadChoice) -> Head:
    classes = schema.classes.get(name, ())
    lists = schema.is_multilabel(name)
    label = f"label {name or schema.spec.label!r}"
    if choice is None:
        choice = "multilabel" if lists else "multiclass" if len(classes) > 2 else "binary"
    if isinstance(choice, str) and choice not in registered_heads():
        raise ConfigError(f"got head={choice!r}; {nearest(choice, registered_heads())}")
    if isinstance(choice, Head):
        head, counted = replace(choice, name=name), isinstance(choice, Multiclass)
    else:
        table = {"kind": choice} if isinstance(choice, str) else choice
        head, counted = head_from_table(table, name), "classes" in table
    if lists and head.kind != "multilabel":
        raise ConfigError(
            f"{label}: got a {head.kind} head for a column of lists, expected 'multilabel'"
        )
    if not lists:
        _check_label(head, label, classes, counted=counted)
    if isinstance(head, Multiclass) and not counted:
        head = replace(head, classes=len(classes))
    head = head.for_schema(schema)
    if head.reads_requests and schema.spec.group is None:
        raise ConfigError(
            f"{label}: got a {head.kind} head, whose loss compares the candidates of a request, "
            "and no column of requests; name it: group = 'request_id' in [data], or "
            "FeatureSpec(group=...)"
        )
    if type(head) not in registered_heads().values() and not head.reads_requests:
        _check_own(head, schema.label_means.get(name))
    elif head.kind != type(head).__dataclass_fields__["kind"].default:
        raise ConfigError(f"{label}: got kind={head.kind!r} for a {type(head).__name__} head")
    return head


def _check_label(head: Head, label: str, classes: Sequence[str], *, counted: bool) -> None:
    """Refuse a head that a label's column cannot teach."""
    if head.kind == "multilabel":
        raise ConfigError(
            f"{label}: got head='multilabel' for a column of single values, expected lists of "
            "classes; use head='multiclass' for one class a row"
        )
    if type(head) not in registered_heads().values():
        return
    if head.kind == "binary" and len(classes) > 2:
        raise ConfigError(
            f"{label}: got head='binary' for {len(classes)} classes; use head='multiclass'"
        )
    if head.kind == "multiclass" and not classes and not counted:
        raise ConfigError(
            f"{label}: its classes are not known (numeric label); give the number of them, "
            "head = { kind = 'multiclass', classes = n } or widedeep.models.heads.Multiclass("
            "classes=n), or make the label a string column"
        )
    if head.kind == "multiclass" and counted and classes and len(classes) != head.width:
        raise ConfigError(
            f"{label}: got classes={head.width} for a column of {len(classes)} classes; leave "
            "classes out"
        )
    if head.kind in ("regression", "ranking") and classes:
        raise ConfigError(
            f"{label}: got head={head.kind!r} for a label of {len(classes)} classes; make the "
            "label a column of numbers, or leave head out"
        )


def _check_through(head: Head, heads: Mapping[str, Head]) -> None:
    """Refuse a product with a head that there is not, or that is a product itself."""
    through = getattr(head, "through", None)
    if through is None:
        return
    other = heads.get(through)
    if other is None or other is head:
        names = [name for name in heads if name != head.name]
        raise head.refusal(f"got through={through!r}; {nearest(str(through), names)}")
    if type(other) is not Binary or other.through is not None:
        raise head.refusal(
            f"got through={through!r}, a head of another kind, expected a binary head with a "
            "probability of its own"
        )


def _check_own(head: Head, label_mean: float | None) -> None:
    """Ask a head of one's own for two examples, so that what it lacks is said before training."""
    what = f"head {type(head).__name__}"
    if head.kind not in HEAD_KINDS:
        raise ConfigError(f"{what}: got kind={head.kind!r}; {nearest(str(head.kind), HEAD_KINDS)}")
    if head.link_in_use not in LINKS[head.kind]:
        raise ConfigError(
            f"{what}: got link={head.link!r}, expected {' or '.join(map(repr, LINKS[head.kind]))} "
            f"for a {head.kind} head"
        )
    cls = type(head)
    by_parts = cls.losses_and_gradient is Head.losses_and_gradient
    losses = definer(cls, "losses")
    own_gradient = cls.gradient is not Head.gradient and definer(cls, "gradient") < losses
    if by_parts and own_gradient:
        base = cls.__mro__[losses].__name__
        raise ConfigError(
            f"{what}: defines gradient() and leaves losses() to {base}; define losses() too, so "
            "that the loss that is shown is the one that is learned"
        )
    logits, labels = torch.zeros(2, head.width), torch.ones(2)
    if head.kind == "multilabel":
        labels = torch.ones(2, head.width)
    calls: dict[str, Callable[[], Any]] = {
        "initial_bias": lambda: torch.tensor(head.initial_bias(label_mean)),
        "losses": lambda: head.losses_and_gradient(logits, labels)[0],
        "gradient": lambda: head.losses_and_gradient(logits, labels)[1],
        "predictions": lambda: head.predictions(logits.double()),
    }
    rows = (2, head.width) if head.kind in ("multiclass", "multilabel") else (2,)
    shapes = {"initial_bias": (head.width,), "losses": (2,), "gradient": (2, head.width)}
    for name, call in calls.items():
        try:
            value = call()
        except Exception as error:
            raise ConfigError(
                f"{what}: {name}() fails for two examples of label 1 "
                f"({type(error).__name__}: {error}); define it for logits (B, {head.width}) and "
                "labels (B,)"
            ) from error
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        if shape != shapes.get(name, rows):
            raise ConfigError(
                f"{what}: {name}() returns {shape} for 2 examples and {head.width} logit(s), "
                f"expected a tensor of shape {shapes.get(name, rows)}"
            )
        if name == "initial_bias" and not bool(torch.isfinite(value).all()):
            raise ConfigError(f"{what}: initial_bias({label_mean}) returns {value.tolist()}")


# Options that earlier checkpoints do not name.
_LATER = {"delta", "gamma", "level", "loss", "pos_weight", "smoothing", "through"}
_LATER |= {"class_weights"}


def describe_head(head: Head) -> str:
    """Return what a checkpoint remembers of a head: its class, and the values of its fields."""
    shown = []
    for field in fields(head):
        value = getattr(head, field.name)
        if field.name == "name" or (field.name in _LATER and value == field.default):
            continue
        shown.append(f"{field.name}={loss_path(value) if callable(value) else repr(value)}")
    return f"{type(head).__qualname__}({', '.join(shown)})"
