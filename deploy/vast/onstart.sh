#!/bin/bash
# What a Vast Serverless template runs at start: image-gen's server in the background, then Vast's PyWorker.
#
# Vast's own start script does the second part by what its servers hold at that moment: a script of a main branch, a git
# repository, and packages without hashes, with the account's keys in the environment. Here the image holds all of it, and
# what is left of that script is the certificate, which Vast signs for each instance.
set -eu
export MODEL_LOG="${MODEL_LOG:-/tmp/image-gen.log}"
export REPORT_ADDR="${REPORT_ADDR:-https://run.vast.ai}" WORKER_PORT="${WORKER_PORT:-3000}" USE_SSL="${USE_SSL:-true}"

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
    # Vast shows the last of the lines that it knows: a model that could not be loaded says why, and this would hide it.
    grep -q '"message": "the model could not be loaded' "$MODEL_LOG" ||
        echo "{\"level\": \"CRITICAL\", \"logger\": \"onstart\", \"message\": \"the server ended with status $status\"}"
}
serve >>"$MODEL_LOG" 2>&1 &

if [ "$USE_SSL" = true ]; then
    # Where the PyWorker reads them. Callers of Vast's do not check the name.
    folder="${CERTIFICATES:-/etc}"
    (umask 077 && openssl req -newkey rsa:2048 -nodes -sha256 -subj "/C=US/ST=CA/CN=pyworker.vast.ai" \
        -addext "subjectAltName=IP:0.0.0.0" -keyout "$folder/instance.key" -out "$folder/instance.csr" 2>/dev/null)
    curl -fsS --retry 5 --retry-all-errors --max-time 30 -H 'Content-Type: application/octet-stream' \
        --data-binary "@$folder/instance.csr" -o "$folder/instance.crt" \
        "https://console.vast.ai/api/v0/sign_cert/?instance_id=$CONTAINER_ID"
fi
exec "${PYWORKER_BIN:-/opt/vast/bin}/python" "$(dirname "$0")/worker.py"
