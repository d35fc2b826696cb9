#!/bin/bash
# What a Vast Serverless template runs at start: image-gen's server in the background, then Vast's own start script, which
# clones PYWORKER_REPO and runs its worker.py.
set -eu
export MODEL_LOG="${MODEL_LOG:-/tmp/image-gen.log}"
START_SCRIPT="${START_SCRIPT:-https://raw.githubusercontent.com/vast-ai/pyworker/main/start_server.sh}"

# A session of Vast's does not always have the image's PATH.
PATH="${IMAGEGEN_BIN:-/opt/venv/bin}:$PATH"
# A worker that starts again must not read the lines of its last life.
rm -f "$MODEL_LOG"
serve() {
    cd "${IMAGEGEN_HOME:-/app}"
    # The PyWorker checks who may call, and has no key to send. So the port is this machine's alone.
    unset IMAGEGEN_API_KEY
    export IMAGEGEN_SERVE=http IMAGEGEN_LOG_FORMAT=json LOG_LEVEL=INFO IMAGEGEN_HOST=127.0.0.1 PORT="${PORT:-18000}"
    status=0
    python -m imagegen || status=$?
    echo "{\"level\": \"CRITICAL\", \"logger\": \"onstart\", \"message\": \"the server ended with status $status\"}"
}
serve >>"$MODEL_LOG" 2>&1 &
curl -fsSL "$START_SCRIPT" -o /tmp/start_server.sh
exec bash /tmp/start_server.sh
