#!/usr/bin/env bash
# What is to be known of a GPU, in at most eight minutes: the contract tests of attacks on it, how often the processor waits in a
# step, a convnet's passes and the kernels (eager and compiled), `auto` beside AutoAttack at a full batch, one cheap table at its
# full budget, and the benches. Writes one JSON and one Markdown record; each part has a process and a share of the time.
# Usage: tests/cuda/run.sh [cuda|cpu] [FOLDER] [SECONDS] [--rehearsed] [--only PART,PART]
set -euo pipefail
cd "$(dirname "$0")/../.."
device=${1:-cuda}
out=${2:-advbench-out/device}
seconds=${3:-480}
mkdir -p "$out"
exec "${PYTHON:-python}" -m tests.cuda.record --device "$device" --out "$out" --seconds "$seconds" "${@:4}"
