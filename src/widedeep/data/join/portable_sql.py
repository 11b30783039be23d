"""The SQL that both engines run: an allow-list of constructs, and its translation for Spark.

sqlglot drops or changes some constructs in silence (the order inside ``list(a ORDER BY b)``, the
length of a list, arrays of percentiles). What is not on the list has not been compared row by row
on both engines, and is refused.
"""

from __future__ import annotations

from typing import Any

from widedeep.data.join.times import TIME_TEXT
from widedeep.errors import DataError, install_hint

MACROS = (
    "CREATE OR REPLACE TEMP MACRO wd_md5_60(x) AS CAST('0x' || substr(md5(x), 1, 15) AS BIGINT)",
    "CREATE OR REPLACE TEMP MACRO wd_micros(x) AS epoch_us(x)",
    "CREATE OR REPLACE TEMP MACRO wd_nanos(x) AS epoch_ns(x)",
    "CREATE OR REPLACE TEMP MACRO wd_floor_1000(x) AS (x - ((x % 1000) + 1000) % 1000) // 1000",
    "CREATE OR REPLACE TEMP MACRO wd_text_micros(x) AS epoch_us(TRY_CAST(x AS TIMESTAMPTZ))",
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
_FUNCTIONS = {"WD_MD5_60", "WD_MICROS", "WD_NANOS", "WD_FLOOR_1000", "WD_TEXT_MICROS"}


def _sqlglot() -> Any:
    """The package, which Spark alone needs."""
    try:
        import sqlglot
    except ModuleNotFoundError as error:
        raise DataError(install_hint("sqlglot", "spark")) from error
    return sqlglot


def _parsed(sql: str) -> Any:
    return _sqlglot().parse_one(sql, read="duckdb")


def check_constructs(sql: str) -> Any:
    """Parse a statement and hold it to the allow-list."""
    tree, exp = _parsed(sql), _sqlglot().exp
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
    """Translate a statement of the portable subset into Spark's SQL."""
    translated = check_constructs(sql).transform(_spark_functions)
    return str(translated.sql(dialect="spark"))


def _spark_functions(node: Any) -> Any:
    if not isinstance(node, _sqlglot().exp.Anonymous):
        return node
    inner = node.expressions[0].transform(_spark_functions).sql(dialect="spark")
    return _sqlglot().parse_one(_SPARK[node.name.upper()].replace("x!", inner), read="spark")


_SIGN = "GREATEST(INSTR(SUBSTR(x!, 12), '+'), INSTR(SUBSTR(x!, 12), '-'))"
_OFFSET = f"SUBSTR(x!, 11 + {_SIGN})"
# The session's zone is UTC: TIMESTAMP_NTZ is read as UTC. Nanoseconds are refused before. Of a text
# Spark reads the date and the time of day; the rest it would complete and round by its own rule.
_SPARK = {
    "WD_MD5_60": "CAST(CONV(SUBSTR(MD5(x!), 1, 15), 16, 10) AS BIGINT)",
    "WD_MICROS": "UNIX_MICROS(CAST(x! AS TIMESTAMP))",
    "WD_NANOS": "UNIX_MICROS(CAST(x! AS TIMESTAMP)) * 1000",
    "WD_FLOOR_1000": "((x! - ((x! % 1000) + 1000) % 1000) DIV 1000)",
    "WD_TEXT_MICROS": f"""CASE WHEN x! RLIKE '{TIME_TEXT}' THEN
  UNIX_MICROS(TRY_CAST(CONCAT(SUBSTR(x!, 1, 10), 'T', CASE WHEN SUBSTR(x!, 17, 1) = ':'
    THEN SUBSTR(x!, 12, 8) WHEN LENGTH(x!) > 10 THEN CONCAT(SUBSTR(x!, 12, 5), ':00')
    ELSE '00:00:00' END) AS TIMESTAMP))
  + CASE WHEN SUBSTR(x!, 20, 1) = '.' THEN CAST(SUBSTR(RPAD(
    REGEXP_EXTRACT(SUBSTR(x!, 21), '^([0-9]+)', 1), 6, '0'), 1, 6) AS BIGINT) ELSE 0 END
  - CASE WHEN {_SIGN} = 0 THEN 0 ELSE
    (CAST(SUBSTR({_OFFSET}, 2, 2) AS BIGINT) * 60 + CAST(CONCAT('0',
      CASE WHEN LENGTH({_OFFSET}) = 3 THEN '' ELSE RIGHT({_OFFSET}, 2) END) AS BIGINT))
    * CASE WHEN SUBSTR({_OFFSET}, 1, 1) = '-' THEN -60000000 ELSE 60000000 END END END""",
}
