#!/bin/bash
#SBATCH --job-name=crashtest
#SBATCH --array=0-15
#SBATCH --requeue
#SBATCH --open-mode=append
# A run in as many parts as the array has. A part that is requeued goes on where it was killed.
#
#   export CRASHTEST_RESULTS=/shared/nightly
#   sbatch ci/slurm.sh --seed 1 --trials 100000 -- ./mybot
#   crashtest merge /shared/nightly --results results/runs      # when all have ended
#
# A part in which a promise is broken that was to be kept ends with status 1, so that Slurm calls it failed;
# merging needs its results all the same.
set -euo pipefail
: "${CRASHTEST_RESULTS:?name a directory that all nodes see}"
exec "${CRASHTEST:-crashtest}" run "$@"
