#!/usr/bin/env bash
# Runs a study and resumes it after a preemption or a crash: run.sh CONFIG [FLAGS]
set -uo pipefail
cd "$(dirname "$0")/.."
config=${1:?usage: run.sh CONFIG [FLAGS]}
shift
for attempt in $(seq 1 10); do
  .venv/bin/python -m experiments.run --config="$config" "$@"
  status=$?
  # 1: a clear error that a repetition would not mend; 130: stopped by hand.
  case $status in 0 | 1 | 130) exit $status ;; esac
  echo "attempt $attempt ended with status $status; resuming" >&2
  sleep 10
done
exit "$status"
