#!/usr/bin/env bash
# One study, many array tasks:  sbatch --export=ALL,STUDY=reference,TRIALS=100 deploy/slurm-array.sh
# Every task is a worker of its own on the same storage; docs/workers.md says what they need.
#SBATCH --job-name=xray-opt
#SBATCH --array=0-7
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=24G
#SBATCH --time=12:00:00
#SBATCH --output=xray-opt-%A-%a.log
# SIGTERM a minute before the end of the time, to this script too: the trial is handed back and goes on in another task.
#SBATCH --signal=B:TERM@60
#SBATCH --requeue
set -euo pipefail

: "${STUDY:?name of the study or its file}" "${TRIALS:?total trials of the study, over all tasks}"
: "${XRAY_OPT_STORAGE:?the shared Optuna storage, such as postgresql://user@host/optuna}"
: "${MLFLOW_TRACKING_URI:?the shared MLflow server, such as http://mlflow:5000}"
# A workspace on a disk that all nodes see: checkpoints there are resumed by other tasks.
export XRAY_OPT_HOME="${XRAY_OPT_HOME:-$PWD}"
export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"

# GPUS=all uses what Slurm gave to the task; leave it empty for the processor.
gpus=()
if [ -n "${GPUS:-}" ]; then gpus=(--gpus "$GPUS"); fi

echo "task ${SLURM_ARRAY_TASK_ID:-0} on $(hostname): study $STUDY to $TRIALS trials"
# `exec`: signals must reach the worker itself. `srun` is not needed for one task.
exec xray-opt tune --study "$STUDY" --trials "$TRIALS" ${gpus[@]+"${gpus[@]}"} "$@"
