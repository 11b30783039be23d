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
last=$(ls -d runs/*/bundle 2> /dev/null | tail -n 1 || true)   # none in the first night
serving=$(ls -d models/[0-9]* 2> /dev/null | tail -n 1 || true)

widedeep join join.toml
widedeep train ads.toml --out "$run" ${last:+--warm-start "${last%/bundle}"}
widedeep report "$run" ${serving:+--models models} -o "$run/report.html"
widedeep validate "$run" ${serving:+--against models} --data examples/test
widedeep publish "$run" models
