#!/bin/sh
# Makes the virtual environment $2 with the interpreter $1 where there is none, and installs vitc into it,
# editable, with the extra $3. What is installed and new enough stays: torch alone is 5 GB.
# With uv when the machine has it or PyPI gives it, since it is many times faster; else with pip.
set -eu

python=$1
venv=$2
extra=$3
private=$venv-uv # a uv that no environment holds yet, for machines with pip but without python3-venv
export UV_HTTP_TIMEOUT="${UV_HTTP_TIMEOUT:-600}" PIP_DISABLE_PIP_VERSION_CHECK=1

fail() {
    printf 'error: %s\n' "$@" >&2
    exit 1
}

find_uv() {
    for candidate in uv "$venv/bin/uv" "$private/bin/uv"; do
        if "$candidate" --version >/dev/null 2>&1; then
            uv=$candidate
            return 0
        fi
    done
    return 1
}

make_environment() {
    command -v "$python" >/dev/null 2>&1 ||
        fail "there is no $python: apt-get install python3 python3-venv, or make PYTHON=/path/to/python3"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        fail "vitc needs Python 3.10 or later and $python is $("$python" -V 2>&1): make PYTHON=python3.12, say"
    echo "making $venv with $("$python" -V 2>&1)"
    if find_uv; then
        "$uv" venv --quiet --allow-existing --python "$python" "$venv"
    elif "$python" -c 'import venv, ensurepip' 2>/dev/null; then
        "$python" -m venv "$venv"
    elif "$python" -m pip install --quiet --target "$private" uv 2>/dev/null && find_uv; then
        "$uv" venv --quiet --allow-existing --python "$python" "$venv"
    else
        fail "$python cannot make virtual environments, and neither uv nor pip is here to help." \
            "On Debian and Ubuntu: apt-get install python3-venv"
    fi
}

[ -x "$venv/bin/python" ] || make_environment

if ! find_uv; then
    "$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$venv/bin/python" -m ensurepip >/dev/null
    "$venv/bin/python" -m pip install --quiet uv || true
    find_uv || uv=
fi

echo "installing vitc[$extra] into $venv (the first time fetches torch, 5 GB)"
if [ -n "$uv" ]; then
    "$uv" pip install --quiet --python "$venv/bin/python" -e ".[$extra]"
else
    "$venv/bin/python" -m pip install --quiet -e ".[$extra]"
fi
