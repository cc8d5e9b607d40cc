#!/usr/bin/env bash
# DDP without a configuration file, on each of NODES machines:
#   NODES=2 NODE=0 HEAD=10.0.0.1 ./torchrun.sh --backbone ... --train_data ... --output_dir ...
# NODE is 0 on the machine whose address HEAD is, and 1, 2, ... on the others.
set -euo pipefail

exec torchrun \
    --nnodes "${NODES:-1}" \
    --node-rank "${NODE:-0}" \
    --nproc-per-node "${GPUS:-8}" \
    --master-addr "${HEAD:-127.0.0.1}" \
    --master-port "${PORT:-29500}" \
    "$(dirname "$0")/train.py" --bf16 --ddp_find_unused_parameters false "$@"
