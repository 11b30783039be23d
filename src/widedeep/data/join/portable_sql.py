"""The SQL that both engines run: an allow-list of constructs, and its translation for Spark.

sqlglot drops or changes some constructs in silence (the order inside ``list(a ORDER BY b)``, the
length of a list, arrays of percentiles). What is not on the list has not been compared row by row
on both engines, and is refused.
"""

from __future__ import annotations

from typing import Any

import sqlglot
from sqlglot import exp

__all__ = ["MACROS", "check_constructs", "for_spark"]

MACROS = (
    "CREATE OR REPLACE TEMP MACRO wd_md5_60(x) AS CAST('0x' || substr(md5(x), 1, 15) AS BIGINT)",
    "CREATE OR REPLACE TEMP MACRO wd_micros(x) AS epoch_us(x)",
    "CREATE OR REPLACE TEMP MACRO wd_text_micros(x) AS epoch_us(CAST(x AS TIMESTAMPTZ))",
)
"""What DuckDB runs for the functions of ours; :func:`for_spark` rewrites them for Spark."""

_ALLOWED = {
    *("Select", "From", "Join", "Where", "Group", "Order", "Ordered", "Having", "Distinct"),
    *("Union", "Subquery", "With", "CTE", "Limit", "Table", "TableAlias", "Column", "Identifier"),
    *("Alias", "Star", "Paren", "Literal", "Null", "Boolean", "Tuple", "And", "Or", "Not", "EQ"),
    *("NEQ", "LT", "LTE", "GT", "GTE", "Is", "In", "Add", "Sub", "Mul", "Div", "Mod", "Neg"),
    *("BitwiseAnd", "BitwiseRightShift", "Case", "If", "Coalesce", "Cast", "DataType"),
    *("DataTypeParam", "Array", "DPipe", "Count", "Sum", "Min", "Max", "ArrayAgg", "RowNumber"),
    *("Window", "WindowSpec", "Floor", "Anonymous", "RegexpLike"),
}
_FUNCTIONS = {"WD_MD5_60", "WD_MICROS", "WD_TEXT_MICROS"}


def _parsed(sql: str) -> Any:
    return sqlglot.parse_one(sql, read="duckdb")


def check_constructs(sql: str) -> Any:
    """Parse a statement and hold it to the allow-list.

    Raises:
        ValueError: For a construct that has not been compared on both engines: our own mistake.

    Example:
        >>> check_constructs("SELECT list(a ORDER BY b) FROM t")
        Traceback (most recent call last):
        ...
        ValueError: an order inside an aggregate is lost in translation: ...
    """
    tree = _parsed(sql)
    for node in tree.walk():
        name = type(node).__name__
        if name not in _ALLOWED:
            raise ValueError(f"SQL construct {name} is not on the portable list: {node.sql()}")
        if isinstance(node, exp.ArrayAgg) and isinstance(node.this, exp.Order):
            raise ValueError(f"an order inside an aggregate is lost in translation: {node.sql()}")
        if isinstance(node, exp.ArrayAgg) and not isinstance(node.parent, exp.Window):
            raise ValueError(f"a grouped list has no order and does not spill: {node.sql()}")
        if isinstance(node, exp.Anonymous) and node.name.upper() not in _FUNCTIONS:
            raise ValueError(f"function {node.name} is not on the portable list")
    return tree


def for_spark(sql: str) -> str:
    """Translate a statement of the portable subset into Spark's SQL.

    Example:
        >>> for_spark("SELECT CAST(a AS VARCHAR) FROM t")
        'SELECT CAST(a AS STRING) FROM t'
    """
    translated = check_constructs(sql).transform(_spark_functions)
    return str(translated.sql(dialect="spark"))


def _spark_functions(node: Any) -> Any:
    if not isinstance(node, exp.Anonymous):
        return node
    inner = node.expressions[0].sql(dialect="spark")
    name = node.name.upper()
    if name == "WD_MD5_60":
        text = f"CAST(CONV(SUBSTR(MD5({inner}), 1, 15), 16, 10) AS BIGINT)"
    else:
        # The session's zone is UTC: text without a zone and TIMESTAMP_NTZ are read as UTC.
        text = f"UNIX_MICROS(CAST({inner} AS TIMESTAMP))"
    return sqlglot.parse_one(text, read="spark")
