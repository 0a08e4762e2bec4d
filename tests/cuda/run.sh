#!/usr/bin/env bash
# What is to be known of a GPU, in at most eight minutes: the contract tests of attacks on it, how often the processor waits in a
# step, kernels and purifiers by `advbench bench` (eager and compiled), `auto` beside AutoAttack at a full batch, and one cheap
# table. Writes one JSON and one Markdown record. Usage: tests/cuda/run.sh [cuda|cpu] [FOLDER] [SECONDS]
set -euo pipefail
cd "$(dirname "$0")/../.."
device=${1:-cuda}
out=${2:-advbench-out/device}
seconds=${3:-480}
mkdir -p "$out"
exec timeout --signal=INT "$((seconds + 30))" "${PYTHON:-python}" -m tests.cuda.record --device "$device" --out "$out" --seconds "$seconds"
