#!/usr/bin/env bash
# Install what is needed and run the quickstart preset: on all GPUs, or without one on the CPU. APT_DS_PROCESSES
# sets the number of processes instead. Arguments go to train.py.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launchers/setup_venv.sh
setup_venv quickstart

processes=${APT_DS_PROCESSES:-}
if ! python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    if ! command -v "${CXX:-c++}" > /dev/null; then
        echo "no GPU and no C++ compiler: without a GPU DeepSpeed compiles its communication code" >&2
        exit 1
    fi
    # left alone, the launcher starts one process per NUMA node
    processes=${processes:-1}
fi
exec deepspeed --log_level warning ${processes:+--num_accelerators "$processes"} \
    launchers/train.py --deepspeed ds_configs/zero3.json "$@"
