#!/bin/sh
# Puts uv into DIR/bin from PyPI with whatever the machine has: pip, or the venv module (Debian splits both off).
# usage: get-uv.sh PYTHON DIR
set -eu
python=$1
dir=$2
if "$python" -m pip --version >/dev/null 2>&1; then
    "$python" -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --target "$dir/lib" uv
    mkdir -p "$dir/bin"
    cp "$dir/lib/bin/uv" "$dir/bin/uv"
elif "$python" -m venv "$dir/venv" >/dev/null 2>&1; then
    "$dir/venv/bin/pip" install --quiet --disable-pip-version-check uv
    mkdir -p "$dir/bin"
    ln -sf ../venv/bin/uv "$dir/bin/uv"
elif [ "${3:-}" != again ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    # A bare Debian has neither; its package brings both.
    rm -rf "$dir/venv"
    apt-get update -qq && apt-get install -y -qq python3-venv >/dev/null
    exec sh "$0" "$python" "$dir" again
else
    rm -rf "$dir/venv"
    echo "setup needs uv, pip or venv, and $python has none: run 'apt-get install python3-venv' or install uv, then try again" >&2
    exit 1
fi
