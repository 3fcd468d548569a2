#!/bin/bash
# Four nodes of eight GPUs under Slurm, one task for each GPU; JAX reads the rest from Slurm:
#
#   sbatch launch/slurm.sh --config=pretrain_augreg:b16,medium1 --workdir=/shared/runs/b16
#
# Two minutes before the time limit, and when the job is preempted, Slurm sends SIGTERM; the run
# saves and ends with status 143. After that, or when a task was lost or hung, the job is queued
# again, and goes on from the newest checkpoint. Other statuses end it.
#SBATCH --job-name=vit
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

# A task that ends early must not take the others with it: they notice, and end by themselves.
srun --kill-on-bad-exit=0 vit-jax train "$@" --config.data.num_workers=8
status=$?
case $status in
  # A lost peer, SIGKILL (such as memory that ran out), a hang, SIGTERM.
  134 | 137 | 142 | 143)
    if [ "${SLURM_RESTART_COUNT:-0}" -lt 100 ]; then
      scontrol requeue "$SLURM_JOB_ID"
    fi
    ;;
esac
exit $status
