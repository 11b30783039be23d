"""Trees, a linear model and TabM on a set of the league table (`bench_quality.py`).

    python benchmarks/peers/models_league.py FOLDER MODEL [--seed 0] [--seconds 600]

Every model keeps the best of its iterations or passes on the validation rows, and stops when
they improve no more or the processor seconds are spent (of all threads together, so that a busy
machine takes nothing away). Settings are the libraries' own, but for the learning
rate of trees (0.05, since early stopping chooses how many) and TabM's, which are its paper's.
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
from league_rows import Rows, Task, read_task, scaled, write_answer

THREADS = 1
RATE, ROUNDS, PATIENCE = 0.05, 3000, 50
LEAST_SEEN = 5  # rows in which a value must occur to be a column of the linear model


def table(rows: Rows) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return numbers and codes side by side; a code is a category by its column alone."""
    return np.concatenate([rows.numbers, rows.codes.astype(np.float32)], axis=1)


def lightgbm_trees(task: Task) -> Any:
    """LightGBM, categories as such."""
    import lightgbm

    first = task.train.numbers.shape[1]
    words = list(range(first, first + len(task.sizes)))
    train = lightgbm.Dataset(table(task.train), task.train.labels, categorical_feature=words)
    valid = train.create_valid(table(task.valid), task.valid.labels)

    def in_time(env: Any) -> None:
        if time.process_time() > task.deadline:
            raise lightgbm.callback.EarlyStopException(env.iteration, env.evaluation_result_list)

    model = lightgbm.train(
        {
            "objective": "binary", "learning_rate": RATE, "verbosity": -1, "seed": task.seed,
            "num_threads": THREADS,
        },
        train, ROUNDS, valid_sets=[valid],
        callbacks=[lightgbm.early_stopping(PATIENCE, verbose=False), in_time],
    )  # fmt: skip
    return model.predict(table(task.test), num_iteration=model.best_iteration)


def xgboost_trees(task: Task) -> Any:
    """XGBoost, categories as such."""
    import xgboost

    kinds = ["q"] * task.train.numbers.shape[1] + ["c"] * len(task.sizes)

    def matrix(rows: Rows) -> Any:
        return xgboost.DMatrix(
            table(rows), rows.labels, feature_types=kinds, enable_categorical=True
        )

    class InTime(xgboost.callback.TrainingCallback):
        def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
            return time.process_time() > task.deadline

    model = xgboost.train(
        {
            "objective": "binary:logistic", "eval_metric": "logloss", "eta": RATE,
            "seed": task.seed, "nthread": THREADS, "tree_method": "hist",
        },
        matrix(task.train), ROUNDS, evals=[(matrix(task.valid), "valid")], verbose_eval=False,
        early_stopping_rounds=PATIENCE, callbacks=[InTime()],
    )  # fmt: skip
    return model.predict(matrix(task.test), iteration_range=(0, model.best_iteration + 1))


def catboost_trees(task: Task) -> Any:
    """CatBoost, categories as such."""
    import catboost

    def pool(rows: Rows) -> Any:
        return catboost.Pool(
            data=catboost.FeaturesData(
                num_feature_data=rows.numbers if rows.numbers.shape[1] else None,
                cat_feature_data=rows.codes.astype(str).astype("S").astype(object)
                if task.sizes
                else None,
            ),
            label=rows.labels,
        )

    class InTime:
        def after_iteration(self, info: Any) -> bool:
            return time.process_time() < task.deadline

    model = catboost.CatBoostClassifier(
        iterations=ROUNDS, learning_rate=RATE, random_seed=task.seed, thread_count=THREADS,
        early_stopping_rounds=PATIENCE, verbose=False, allow_writing_files=False,
    )  # fmt: skip
    model.fit(pool(task.train), eval_set=pool(task.valid), callbacks=[InTime()])
    return model.predict_proba(pool(task.test))[:, 1]


def logistic_regression(task: Task) -> Any:
    """scikit-learn's, over standardised numbers and a column a word; C chosen on validation."""
    from scipy import sparse
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss

    numbers = scaled(task)
    parts = (task.train, task.valid, task.test)
    blocks: list[list[Any]] = [[sparse.csr_matrix(part)] for part in numbers]
    for column, size in enumerate(task.sizes):
        seen = np.bincount(task.train.codes[:, column], minlength=size) >= LEAST_SEEN
        for rows, matrices in zip(parts, blocks, strict=True):
            codes = rows.codes[:, column]
            kept = seen[codes]
            matrices.append(
                sparse.csr_matrix(
                    (kept.astype(np.float32), codes, np.arange(len(codes) + 1)),
                    shape=(len(codes), size),
                )
            )
    train, valid, test = (sparse.hstack(matrices, format="csr") for matrices in blocks)
    best: tuple[float, Any] = (np.inf, None)
    for strength in (0.03, 0.3, 3.0):
        model = LogisticRegression(C=strength, max_iter=200).fit(train, task.train.labels)
        loss = log_loss(task.valid.labels, model.predict_proba(valid)[:, 1])
        best = min(best, (loss, model), key=lambda pair: pair[0])
        if time.process_time() > task.deadline:
            break
    return best[1].predict_proba(test)[:, 1]


def tabm(task: Task) -> Any:
    """TabM with piecewise linear embeddings of numbers, as its example trains it."""
    import torch
    from rtdl_num_embeddings import PiecewiseLinearEmbeddings, compute_bins
    from tabm import TabM

    torch.manual_seed(task.seed)
    torch.set_num_threads(THREADS)
    parts = [
        (torch.from_numpy(numbers), torch.from_numpy(rows.codes), torch.from_numpy(rows.labels))
        for numbers, rows in zip(scaled(task), (task.train, task.valid, task.test), strict=True)
    ]
    (x, codes, labels), valid, test = parts
    width = x.shape[1]
    embeddings = None
    if width:
        bins = compute_bins(x, n_bins=48)
        embeddings = PiecewiseLinearEmbeddings(bins, d_embedding=16, activation=False, version="B")
    model = TabM.make(
        n_num_features=width, cat_cardinalities=task.sizes or None, d_out=1,
        num_embeddings=embeddings,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=3e-4)
    loss_of = torch.nn.functional.binary_cross_entropy_with_logits

    def logits(numbers: Any, codes: Any) -> Any:
        return model(numbers if width else None, codes if task.sizes else None).squeeze(-1)

    def probabilities(part: Any) -> Any:
        model.eval()
        with torch.inference_mode():
            chunks = [
                torch.sigmoid(logits(a, b)).mean(1)
                for a, b in zip(part[0].split(4096), part[1].split(4096), strict=True)
            ]
        model.train()
        return torch.cat(chunks).numpy()

    def learn() -> None:
        for index in torch.randperm(len(labels)).split(256):
            out = logits(x[index], codes[index])
            optimizer.zero_grad()
            loss_of(out, labels[index, None].expand_as(out)).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if time.process_time() > task.deadline:
                return

    return best_pass(task, model, learn, probabilities, valid, test)


def best_pass(
    task: Task, model: Any, learn: Callable[[], None], predict: Callable[[Any], Any], valid: Any,
    test: Any,
) -> Any:  # fmt: skip
    """Return the test predictions after the pass that is best on validation (patience 3)."""
    from sklearn.metrics import log_loss

    best, weights, without = np.inf, None, 0
    while without < 3 and (weights is None or time.process_time() < task.deadline):
        learn()
        loss = log_loss(task.valid.labels, np.clip(predict(valid), 1e-7, 1 - 1e-7))
        without += 1
        if loss < best:
            best, weights, without = loss, copy.deepcopy(model.state_dict()), 0
    model.load_state_dict(weights)
    return predict(test)


MODELS: dict[str, Callable[[Task], Any]] = {
    "lightgbm": lightgbm_trees,
    "catboost": catboost_trees,
    "xgboost": xgboost_trees,
    "logistic": logistic_regression,
    "tabm": tabm,
}


def main() -> None:
    """Learn and answer."""
    task = read_task()
    write_answer(task, MODELS[task.model](task))


if __name__ == "__main__":
    main()
