#!/bin/sh
# The first minutes on a machine with a GPU and no network: what is promised, measured, in two calls of nine minutes.
#
#   scripts/gpu_first_run.sh wheels    with a network: the packages that such a machine lacks, 13 MB, into build/wheels
#   scripts/gpu_first_run.sh 1         what is promised: bf16, fp8 under a cap of 24 GB, bare diffusers beside them,
#                                      loading, offload, cached keys and values; 4 minutes on an H100
#   scripts/gpu_first_run.sh 2         what each lever is worth; 4 minutes
#
# The machine has Python 3.12, torch 2.11 with CUDA, Triton, a C compiler and transformers 5.17. Each row is in
# $OUTPUT/benchmark_gpu_PART.json and .md as soon as it is measured, so that a call that is cut off has yielded something.
set -eu
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3} OUTPUT=${OUTPUT:-${OUT:-outputs}} WHEELS=${WHEELS:-build/wheels} SITE=build/first-run
PACKAGES="diffusers torchao pydantic pydantic-core pydantic-settings typing-inspection annotated-types python-dotenv
  accelerate psutil"

if [ "$1" = wheels ]; then
  pins=$(for package in $PACKAGES; do grep -iE "^$(echo "$package" | sed "s,-,[-_],g")==" constraints.txt || echo "$package"; done)
  # shellcheck disable=SC2086 # one word a package
  PIP_CONSTRAINT='' "$PYTHON" -m pip download -q --no-deps --only-binary :all: --python-version 3.12 \
    --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 --platform manylinux_2_17_x86_64 --platform any \
    -d "$WHEELS" $pins
  ls "$WHEELS"
  exit
fi

if [ -d "$WHEELS" ] && [ ! -d "$SITE" ]; then
  PIP_CONSTRAINT='' "$PYTHON" -m pip install -q --no-deps --no-index --target "$SITE" "$WHEELS"/*.whl
fi
export PYTHONPATH="$SITE:." PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True HF_HUB_OFFLINE=1
mkdir -p "$OUTPUT"
"$PYTHON" -m benchmarks.gpu --part "$1" --model "${MODEL:-klein-9b}" --device "${DEVICE:-cuda}" \
  --minutes "${MINUTES:-9}" --output "$OUTPUT"
