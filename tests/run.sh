#!/usr/bin/env bash
# Install, lint and test, without any download at test time. Arguments go to pytest: `-m slow` for the long tests,
# `-n 0` for one process, in which prints show with -s.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launchers/setup_venv.sh
setup_venv dev,quickstart

export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TOKENIZERS_PARALLELISM=false
ruff check .
ruff format --check .
lint-imports
mypy
# most tests wait for processes of their own: two at a time end sooner
python -m pytest tests -q -n 2 --dist loadfile "$@"
