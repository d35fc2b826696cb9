#!/bin/bash
# On-start script of a Vast Serverless template: image-gen's server in the background, then Vast's own start script, which
# clones PYWORKER_REPO and runs its worker.py.
set -eu
export MODEL_LOG="${MODEL_LOG:-/tmp/image-gen.log}" PORT="${PORT:-7000}"
# A worker that starts again must not read the lines of its last life.
rm -f "$MODEL_LOG"
(
    cd "${IMAGEGEN_HOME:-/app}"
    status=0
    IMAGEGEN_SERVE=http IMAGEGEN_LOG_FORMAT=json LOG_LEVEL=INFO IMAGEGEN_API_KEY='' python -m imagegen >>"$MODEL_LOG" 2>&1 || status=$?
    echo "{\"level\": \"CRITICAL\", \"logger\": \"onstart\", \"message\": \"the server ended with status $status\"}" >>"$MODEL_LOG"
) &
exec bash -c "$(curl -fsSL "${VAST_START_SCRIPT:-https://raw.githubusercontent.com/vast-ai/pyworker/main/start_server.sh}")"
