"""Memory of Spark's driver while executors join logs of growing size: does it stay flat?

    python benchmarks/bench_spark_driver.py                      # 1M and 10M impressions
    python benchmarks/bench_spark_driver.py --millions 0.05 0.5  # smaller
    python benchmarks/bench_spark_driver.py --keep DIR           # goes on where it stopped
    python benchmarks/bench_spark_driver.py --write              # into RESULTS.md

Two executors run as processes of their own (``local-cluster[2,1,1024]``). The driver is the Python
process and its JVM, which has 512 MB of heap whatever the log; the peaks are Linux's (VmHWM). What
tasks cost is Spark's own count of their processor time, which other programs do not stretch.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from join_log import join_config, write_log
from results_file import machine, write_section

MASTER = "local-cluster[2,1,1024]"
OPTIONS = {
    "spark.driver.memory": "512m",
    "spark.executor.memory": "1g",
    "spark.sql.shuffle.partitions": "8",
    "spark.log.level": "ERROR",
}
FLAT = 1.1
RUN = "run.json"


def peak_mb(pid: int | str) -> float:
    """Return the most that a process has had resident."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def driver_jvm() -> int:
    """Return the JVM that this process started."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if parent == os.getpid() and b"org.apache.spark.deploy.SparkSubmit" in words:
                return int(entry.name)
    raise SystemExit("found no JVM of the driver")


def task_costs(events: Path) -> dict[str, float]:
    """Return processor seconds, those of garbage collection, and spilled MB of all tasks."""
    costs = dict.fromkeys(("cpu_seconds", "gc_seconds", "spilled_mb"), 0.0)
    for log in events.iterdir():
        for line in log.read_text(encoding="utf-8").splitlines():
            metrics = (
                json.loads(line).get("Task Metrics") if "SparkListenerTaskEnd" in line else None
            )
            if metrics:
                costs["cpu_seconds"] += metrics["Executor CPU Time"] / 1e9
                costs["gc_seconds"] += metrics["JVM GC Time"] / 1e3
                costs["spilled_mb"] += metrics["Disk Bytes Spilled"] / 1e6
    return costs


def join(folder: Path) -> None:
    """Join a log and write what the driver took."""
    import dataclasses

    from pyspark.sql import SparkSession

    from widedeep.join import run_join

    # A session of this process stays when the join is over, so that its JVM can be asked.
    builder = SparkSession.builder.master(MASTER)
    events = folder / "events"
    events.mkdir(exist_ok=True)
    log = {"spark.eventLog.dir": events.as_uri(), "spark.eventLog.rolling.enabled": "false"}
    log |= {"spark.eventLog.enabled": "true", "spark.eventLog.compress": "false"}
    for name, value in {**OPTIONS, **log}.items():
        builder = builder.config(name, value)
    session = builder.config("spark.ui.enabled", "false").getOrCreate()
    config = join_config(folder, folder / "examples", engine="spark", memory_limit=None, threads=1)
    config = dataclasses.replace(config, spark_master=None, spark_options={})
    started = time.perf_counter()
    rows = sum(run_join(config).rows.values())
    run = {
        "seconds": time.perf_counter() - started,
        "rows": rows,
        "python_mb": peak_mb("self"),
        "jvm_mb": peak_mb(driver_jvm()),
    }
    session.stop()  # its log of events is whole then
    (folder / RUN).write_text(json.dumps({**run, **task_costs(events)}))


def main() -> int:
    """Measure every size in a process of its own, and print a table."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--millions", type=float, nargs="+", default=[1, 10])
    options.add_argument("--write", action="store_true", help="replace the section in RESULTS.md")
    options.add_argument("--keep", help="folder for the logs, and what was measured")
    options.add_argument("--folder", help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.folder:
        join(Path(chosen.folder))
        return 0
    lines = [
        "| impressions | examples | seconds | of a processor, in tasks | a million impressions | "
        "collecting garbage | MB spilled | peak MB of the driver's Python | of its JVM |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    peaks = []
    for millions in chosen.millions:
        with tempfile.TemporaryDirectory(prefix="bench-spark-driver-") as scratch:
            folder = Path(chosen.keep or scratch) / f"{millions:g}m"
            if not (folder / RUN).exists():
                scale = 0.1 if millions < 1 else 1.0
                write_log(folder, scale, int(millions * 1e6 / scale))
                command = [sys.executable, __file__, "--folder", str(folder)]
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            run = json.loads((folder / RUN).read_text())
        peaks.append(run["python_mb"] + run["jvm_mb"])
        lines.append(
            f"| {millions * 1e6:,.0f} | {run['rows']:,} | {run['seconds']:.0f} | "
            f"{run['cpu_seconds']:.0f} | {run['cpu_seconds'] / millions:.0f} | "
            f"{run['gc_seconds']:.0f} | {run['spilled_mb']:.0f} | "
            f"{run['python_mb']:.0f} | {run['jvm_mb']:.0f} |"
        )
        print(lines[-1], flush=True)
    flat = max(peaks) <= FLAT * peaks[0]
    text = (
        f"## The driver of a join on Spark\n\n`benchmarks/bench_spark_driver.py` on {machine()}; "
        f"{MASTER}, 512 MB of heap for the driver.\n\n" + "\n".join(lines) + "\n\n"
        f"Aim: the largest log's peak within {FLAT - 1:.0%} of the smallest's: "
        f"{'met' if flat else 'missed'} ({max(peaks) / peaks[0]:.2f})."
    )
    print(text)
    if chosen.write:
        write_section("join:driver", text)
    return 0 if flat else 1


if __name__ == "__main__":
    sys.exit(main())
