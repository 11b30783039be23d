"""An Airflow DAG: one turn of the loop a day, a task a step: a failed step is redone alone.

It lies in Airflow's folder of DAGs; the workers have widedeep[train,join,publish] in /opt/widedeep,
and share the model's home.
"""

from __future__ import annotations

import pendulum
from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG

HOME = "/srv/ads"
RUN = "runs/{{ ds }}"
LAST = "$(ls -d runs/*/bundle | tail -n 1 | xargs dirname)"
STEPS = {
    "join": "widedeep join join.toml",
    "train": f"widedeep train ads.toml --out {RUN} --warm-start {LAST}",
    "report": f"widedeep report {RUN} --models models -o {RUN}/report.html",
    "validate": f"widedeep validate {RUN} --against models --data examples/test",
    "publish": f"widedeep publish {RUN} models",
}

with DAG(
    "widedeep_retrain",
    schedule="0 3 * * *",
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    catchup=False,
    max_active_runs=1,  # two runs would publish over each other
    default_args={"retries": 0},  # exit code 1 is a verdict, which another try would not change
):
    before = None
    for step, command in STEPS.items():
        task = BashOperator(
            task_id=step,
            bash_command=command,
            cwd=HOME,
            env={"PATH": "/opt/widedeep/bin:/usr/bin:/bin"},
        )
        if before is not None:
            before >> task
        before = task
