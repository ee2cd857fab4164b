#!/usr/bin/env bash
# All that only a GPU shows, in eight minutes at most, without a network.
#
#   tests/gpu/run.sh --fill WHEELS      before, where there is a network: what the other machine lacks
#   tests/gpu/run.sh --wheels WHEELS    on the machine with the GPU: Python 3.12, torch and Lightning are there
#   tests/gpu/run.sh                    where everything is installed
#   tests/gpu/run.sh --device cpu       the same on the CPU, as far as it can, in small sizes
set -euo pipefail
cd "$(dirname "$0")/../.."

PYTHON=${PYTHON:-python3}
TORCHVISION=${TORCHVISION:-0.26}  # that of torch 2.11
LIMIT=470  # seconds
NEEDED=(fvcore greenlet kneed jsonargparse'[signatures]' matplotlib numpy pillow rich scikit-learn scipy threadpoolctl tqdm pytest)

device=cuda wheels= fill=
while [ $# -gt 0 ]; do
    case $1 in
        --device) device=$2 ;;
        --wheels) wheels=$2 ;;
        --fill) fill=$2 ;;
        *) sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
    esac
    shift 2
done

if [ -n "$fill" ]; then
    # fvcore and iopath come as sources alone.
    "$PYTHON" -m pip wheel --quiet --no-deps --wheel-dir "$fill" fvcore iopath
    target=(--python-version 3.12 --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64
        --implementation cp --only-binary :all: --dest "$fill" --find-links "$fill")
    "$PYTHON" -m pip download --quiet "${target[@]}" "${NEEDED[@]}"
    exec "$PYTHON" -m pip download --quiet "${target[@]}" --no-deps "torchvision==$TORCHVISION.*"
fi

if [ -n "$wheels" ]; then
    home=$(mktemp -d)
    trap 'rm -rf "$home"' EXIT
    # torch and Lightning are those of the machine.
    "$PYTHON" -m venv --system-site-packages "$home/env"
    PYTHON=$home/env/bin/python
    "$PYTHON" -m pip install --quiet --no-index --find-links "$wheels" "${NEEDED[@]}"
    "$PYTHON" -c "import torchvision" 2> /dev/null ||
        "$PYTHON" -m pip install --quiet --no-index --no-deps --find-links "$wheels" torchvision
fi

export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
# -s: the rows of the benchmark are printed.
timeout "$LIMIT" "$PYTHON" -m pytest -m gpu -s -q --durations=10 --device "$device" tests/gpu
