"""The whole loop on a simulated app store: two weeks in the life of a model.

A week of logs is joined and trained on; the model passes the gate, is published, and serves. In the
second week users are ranked for by that server; its own log of impressions trains the next model,
which starts warm, must pass the gate against the one in service, and takes its place. At the end
both models serve side by side, each half of the users, and installs are counted.

Every step is a command that is shown as it is run.

    python examples/app_store/loop.py [--out loop] [--requests 6000]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

# The server's log says when an answer was given; in the simulation installs follow at once.
SERVED_JOIN = """\
[join]
output = "examples"
open_windows = "keep"

[impressions]
path = "{log}/**/*.parquet"
position = "position"

[actions]
path = "{actions}/*.parquet"
kind = "kind"
value = "price"

[[labels]]
name = "label"
kinds = ["install"]
window = "10s"

[split]
by = "time"
fractions = [0.7, 0.1, 0.2]
"""


# The test parts hold some 1,000 installs: two good models differ by a few percent in their sums.
GATE = ("--set", "gate.unit='request_id'", "--set", "gate.max_calibration_rise=0.1")
# Rates that fall to 0 leave the model where all of the data put it, not the last batches.
TRAIN = ("--set", "train.schedule='linear'")


class Loop:
    """Runs the commands in a folder, and shows them.

    Args:
        place: Everything is written below it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started = time.monotonic()
        self.step = 0

    def tell(self, text: str) -> None:
        """Print a step's heading with the time that has passed."""
        self.step += 1
        seconds = time.monotonic() - self.started
        bold, plain = ("\033[1m", "\033[0m") if sys.stdout.isatty() else ("", "")
        print(f"\n{bold}{self.step:2}. {text}{plain}  [{seconds:.0f} s]", flush=True)

    def run(self, *words: object, may_say_no: bool = False) -> bool:
        """Run a verb; return False if its answer is no, and stop if it failed."""
        command = [str(word) for word in words]
        print(f"$ widedeep {shlex.join(command)}", flush=True)
        ran = subprocess.run(
            [sys.executable, "-m", "widedeep", *command], cwd=self.folder, check=False
        )
        if ran.returncode and not (may_say_no and ran.returncode == 1):
            sys.exit(f"stopped: 'widedeep {command[0]}' ended with exit code {ran.returncode}")
        return ran.returncode == 0

    @contextlib.contextmanager
    def serving(self, log: str) -> Iterator[str]:
        """Serve the newest model while the block runs, and log to a folder; yield the URL."""
        words = ["serve", "apps=models", "--http", ":0", "--items", "apps.parquet"]
        words += ["--item-id", "app", "--log", log, "--poll", "0.5"]
        print(f"$ widedeep {shlex.join(words)} &", flush=True)
        with subprocess.Popen(
            [sys.executable, "-m", "widedeep", *words, "--json"],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as server:
            try:
                assert server.stdout is not None
                url = json.loads(server.stdout.readline())["http"]
                wait_ready(url)
                yield url
            finally:
                server.send_signal(signal.SIGTERM)  # what was shown is written before it ends
                server.wait(60)


def wait_ready(url: str) -> None:
    """Wait until a model is loaded."""
    for _ in range(600):
        try:
            with urllib.request.urlopen(f"{url}/health/ready", timeout=5):
                return
        except urllib.error.URLError:
            time.sleep(0.1)
    sys.exit("stopped: the server has not become ready within a minute")


def show_ranking(url: str, folder: Path) -> None:
    """Rank for one user of the first week, and print the list with its reasons."""
    row = pq.read_table(folder / "week1/impressions").slice(0, 1).to_pylist()[0]
    apps = pq.read_table(folder / "apps.parquet")["app"].to_pylist()
    columns = ("user_days", "user_installed", "user_country", "user_age")
    body = {
        "user": {name: row[name] for name in columns},
        "context": {name: row[name] for name in ("hour", "device")},
        "candidates": [app for app in apps if app not in row["user_installed"]],
        "k": 5,
        "explain": True,
    }
    request = urllib.request.Request(
        f"{url}/v1/rank", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    started = time.perf_counter()
    with urllib.request.urlopen(request, timeout=30) as answer:
        ranking = json.load(answer)
    elapsed_ms = 1000 * (time.perf_counter() - started)
    abridged = {
        **body,
        "candidates": [*body["candidates"][:2], f"... {len(body['candidates'])} apps"],
    }
    print(f"\nPOST {url}/v1/rank\n{json.dumps(abridged, default=str)}")
    print(f"\nanswered in {elapsed_ms:.1f} ms, best first, with the strongest wide weights:")
    for app, score, why in zip(
        ranking["items"], ranking["scores"], ranking["explanations"], strict=True
    ):
        terms = sorted(why["wide"], key=lambda term: -abs(term["weights"][0]))[:2]
        reasons = ", ".join(f"{t['feature']} = {t['value']} {t['weights'][0]:+.2f}" for t in terms)
        print(f"  {app}  P(install) = {score:.3f}   deep {why['deep'][0]:+.2f}; {reasons}")


def first_week(loop: Loop, requests: int) -> None:
    """From nothing to a model in service."""
    loop.tell("A week of an app store, ranked by popularity: there is no model yet")
    loop.run("simulate", "week1", "--requests", requests, "--explore", 0.1)
    loop.tell("Join impressions and installs into labelled examples")
    loop.run("join", "week1/join.toml")
    loop.tell("Train the wide and the deep part jointly")
    loop.run("train", "week1/app_store.toml", *TRAIN, "--out", "runs/1")
    loop.tell("The gate: a dry run in a fresh process, and what rows say that it has not seen")
    loop.run("validate", "runs/1", "--data", "week1/examples/test", *GATE)
    loop.tell("Publish: only what has passed, whole or not at all")
    loop.run("publish", "runs/1", "models")
    shutil.copy(loop.folder / "week1/catalogue.parquet", loop.folder / "apps.parquet")


def second_week(loop: Loop) -> None:
    """Serve, learn from what was served, and put the next model in the first one's place."""
    loop.tell("Serve it; the second week begins")
    with loop.serving("log") as url:
        show_ranking(url, loop.folder)
        print()
        policy = ("--policy", f"served={url}", "--explore", 0.05, "--catalogue", "apps.parquet")
        loop.run("simulate", "week2", "--resume", "week1", *policy, "--days", 5)
    loop.tell("Join what the server itself logged: the very values that it scored")
    (loop.folder / "served").mkdir()
    text = SERVED_JOIN.format(log=loop.folder / "log", actions=loop.folder / "week2/actions")
    (loop.folder / "served/join.toml").write_text(text)
    shutil.copy(loop.folder / "week1/app_store.toml", loop.folder / "served/app_store.toml")
    loop.run("join", "served/join.toml")
    loop.tell("Train the next model, from where the first one stopped")
    words = ("--warm-start", "runs/1", "--out", "runs/2")
    loop.run("train", "served/app_store.toml", *TRAIN, *words)
    with loop.serving("log") as url:
        loop.tell("The gate: is it as good as the one in service, on what was served last?")
        data = ("--data", "served/examples/test")
        judged = ("runs/2", "--against", "models", *data, *GATE)
        if not loop.run("validate", *judged, may_say_no=True):
            print("the gate has stopped it, for the reasons above: the first model goes on serving")
            return
        loop.tell("Publish it; the server swaps while it serves")
        loop.run("publish", "runs/2", "models")
        wait_version(url, "2")
        print(f"{url} serves version 2")
        loop.tell("Both models side by side, each for half of the users")
        arms = ("--policy", "frozen=runs/1/bundle", "--policy", f"retrained={url}")
        words = ("--resume", "week2", *arms, "--catalogue", "apps.parquet", "--days", 4)
        loop.run("simulate", "week3", *words)


def wait_version(url: str, version: str) -> None:
    """Wait until a version takes the traffic."""
    for _ in range(600):
        with urllib.request.urlopen(f"{url}/v1/status", timeout=5) as answer:
            versions = json.load(answer)["models"]["apps"]
        if any(entry["version"] == version and entry["state"] == "ready" for entry in versions):
            return
        time.sleep(0.1)
    sys.exit(f"stopped: the server has not taken version {version} within a minute")


def acquisitions(loop: Loop) -> None:
    """Print installs a request, before and after, with 95 % intervals from users."""
    loop.tell("What it brought: installs a request, and their 95 % interval")
    titles = {"popularity": "week 1, no model", "served": "week 2, the first model"}
    titles |= {
        "frozen": "then: the first model still",
        "retrained": "then: the second, warm-started",
    }
    for week in sorted(folder.name for folder in loop.folder.glob("week*")):
        table = pq.read_table(loop.folder / week / "requests")
        users = table.group_by(["arm", "user_id"]).aggregate(
            [("installs", "sum"), ("installs", "count")]
        )
        for arm in sorted(users["arm"].unique().to_pylist()):
            of_arm = users.filter(pc.equal(users["arm"], arm))
            installs_U = of_arm["installs_sum"].to_numpy()
            requests_U = of_arm["installs_count"].to_numpy()
            requests = requests_U.sum()
            rate = installs_U.sum() / requests
            # Users are what was drawn, and they differ in how often they come.
            half = 1.96 * (installs_U - rate * requests_U).std() * len(of_arm) ** 0.5 / requests
            print(f"  {titles.get(arm, arm):32}  {rate:.4f} ± {half:.4f}   {requests:,} requests")


def main() -> None:
    """Run the loop."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", default="loop", help="the folder; what is there is replaced")
    parser.add_argument("--requests", type=int, default=6000, help="a day")
    arguments = parser.parse_args()
    folder = Path(arguments.out).resolve()
    if folder.exists() and not (folder / ".loop").exists() and any(folder.iterdir()):
        sys.exit(f"{folder}: is not empty and no earlier loop; name another folder with --out")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / ".loop").touch()
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    loop = Loop(folder)
    first_week(loop, arguments.requests)
    second_week(loop)
    acquisitions(loop)
    loop.tell("Where the models came from")
    loop.run("inspect", "models")
    loop.tell(
        "One page about the newest model: what it learned, how good it is, where it comes from"
    )
    loop.run("report", "runs/2", "--models", "models", "--out", "report.html")
    print(f"\nall of it is in {folder}; look at")
    for page in ("report.html", "served/examples/report.html", "runs/2/bundle.verdict.html"):
        print(f"  {folder / page}")


if __name__ == "__main__":
    main()
