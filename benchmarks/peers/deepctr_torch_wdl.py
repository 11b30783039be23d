"""DeepCTR-Torch's WDL: dense gradients, one optimizer for both parts, no crosses of its own.

    python benchmarks/peers/deepctr_torch_wdl.py TRAIN TEST [--batches 60] [--ids 800000]

It has no encoder: text is coded by a dictionary of the training values, and the three crosses are
columns made by hand. A step costs the whole tables, so a pass over 400,000 rows takes many minutes:
by default it learns a number of batches alone, and its quality is that of those rows. `--ids`
spreads hashed ids over tables of that many rows together, to show what their size costs.
"""

from __future__ import annotations

import time

import shared_task as task
import torch
from coded_rows import Encoder
from deepctr_torch.inputs import DenseFeat, SparseFeat
from deepctr_torch.models import WDL

WIDTH = 16
RATE = 0.02


def make_model(encoder: Encoder, ids: int | None, seed: int) -> WDL:
    """Return the model, its tables enlarged to ``ids`` rows together if that is given."""
    sizes = encoder.sizes
    if ids is not None:
        share = ids / sum(sizes.values())
        sizes = {name: max(size, int(size * share)) for name, size in sizes.items()}
    words = [SparseFeat(name, size, embedding_dim=WIDTH) for name, size in sizes.items()]
    deep = [word for word in words if word.name in task.WORDS]
    numbers = [DenseFeat(name, 1) for name in task.NUMBERS]
    return WDL(words, [*deep, *numbers], dnn_hidden_units=(256, 128), seed=seed, device="cpu")


def main() -> None:
    """Prepare, learn, judge."""
    parser = task.arguments(__doc__)
    parser.add_argument("--batches", type=int, default=60, help="0: the whole pass")
    parser.add_argument("--ids", type=int, default=None)
    asked = parser.parse_args()
    start = time.process_time()
    train = task.read_rows(asked.train)
    encoder = Encoder(train, task.CROSSES[asked.crosses])
    inputs = encoder(train)
    prepare_s = time.process_time() - start
    torch.manual_seed(asked.seed)
    model = make_model(encoder, asked.ids, asked.seed)
    rate = torch.optim.Adagrad(model.parameters(), lr=RATE)
    model.compile(rate, "binary_crossentropy")
    rows = train.num_rows if asked.batches == 0 else asked.batches * asked.batch
    learned = {name: values[:rows] for name, values in inputs.items()}
    start = time.process_time()
    model.fit(learned, task.labels_of(train)[:rows], batch_size=asked.batch, epochs=1, verbose=0)
    train_s = time.process_time() - start
    test = task.read_rows(asked.test)
    table_rows = sum(w.shape[0] for n, w in model.named_parameters() if "embedding_dict" in n)
    task.report(
        "deepctr-torch",
        table=test,
        probabilities=model.predict(encoder(test), batch_size=8192)[:, 0],
        prepare_s=prepare_s,
        train_s=train_s,
        train_rows=min(rows, train.num_rows),
        latency=task.latency_ms(lambda n: model.predict(encoder(task.request_of(test, n)), 200)),
        note=f"Adagrad {RATE}, batch {asked.batch}, {table_rows:,} table rows of both parts",
    )


if __name__ == "__main__":
    main()
