#!/usr/bin/env bash
# One turn of the loop: yesterday's log becomes examples, a model that starts from the one in
# service, a verdict, and a new version, or none.
#
#   retrain.sh HOME_OF_THE_MODEL      with join.toml, ads.toml, runs/ and models/ in it
#
# Exit code 1: the gate said no; nothing was published, and the report tells why.
set -euo pipefail
cd "$1"
run=runs/$(date -u +%Y-%m-%d)
last=$(ls -d runs/*/bundle 2> /dev/null | tail -n 1 | xargs -r dirname)

widedeep join join.toml
widedeep train ads.toml --out "$run" ${last:+--warm-start "$last"}
widedeep report "$run" --models models -o "$run/report.html"
widedeep validate "$run" --against models --data examples/test
widedeep publish "$run" models
