"""Makes a Parquet file of UCI's "Online Retail.xlsx".

python examples/online_retail/convert.py "Online Retail.xlsx" online_retail.parquet
"""

from __future__ import annotations

import sys

COLUMNS = ["Description", "Quantity", "InvoiceDate", "UnitPrice", "CustomerID", "Country"]


def main(workbook: str, parquet: str) -> None:
    """Convert; descriptions that look like numbers stay text."""
    import pandas as pd

    table = pd.read_excel(workbook, usecols=COLUMNS, dtype={"Description": "string"})
    table[COLUMNS].to_parquet(parquet, index=False)


if __name__ == "__main__":
    main(*sys.argv[1:3])
