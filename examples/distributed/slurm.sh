#!/usr/bin/env bash
#SBATCH --job-name=preference-model
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
# Several machines under Slurm, FSDP2 (or another file of this folder, as CONFIG):
#   sbatch slurm.sh --backbone ... --train_data ... --output_dir ...
# sbatch copies this script elsewhere: submit it from the folder that it is in.
set -euo pipefail

cd "${SLURM_SUBMIT_DIR:-.}"
GPUS="${SLURM_GPUS_ON_NODE:-8}"
export HEAD="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
export PORT="${PORT:-29500}" GPUS CONFIG="${CONFIG:-fsdp2.yaml}"

# One task per machine starts its processes; the machine's number is known in the task alone.
srun --kill-on-bad-exit=1 bash -c '
    exec accelerate launch \
        --config_file "$CONFIG" \
        --num_machines "$SLURM_NNODES" \
        --num_processes "$((SLURM_NNODES * GPUS))" \
        --machine_rank "$SLURM_NODEID" \
        --main_process_ip "$HEAD" \
        --main_process_port "$PORT" \
        train.py "$@"
' bash "$@"
