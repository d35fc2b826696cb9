# syntax=docker/dockerfile:1
# One image for every platform. Layers are in the order in which they change: system, dependencies, weights, code.
#
#   docker build -t image-gen .                                            the weights come at start
#   docker build --secret id=hf_token,env=HUGGING_FACE_TOKEN -t image-gen .    klein-9b in fp8 is in the image
#   docker build --build-arg MODEL=klein-4b --build-arg PRECISION=bf16 -t image-gen .    klein-4b needs no token

# Any image with Python 3.11 and apt. `make digests` writes the digest of this one, and of the syntax above: nothing is
# pushed without them (.github/workflows/image-gen.yml).
ARG BASE_IMAGE=python:3.11-slim-bookworm

# What bakes the weights: these files alone, so that no other change bakes them again.
FROM ${BASE_IMAGE} AS baker
COPY imagegen/__init__.py imagegen/errors.py imagegen/models.py imagegen/setting_faults.py \
    imagegen/job_settings.py imagegen/lora_settings.py imagegen/setting_sections.py imagegen/settings.py /baker/imagegen/
COPY imagegen/compat/__init__.py imagegen/compat/torchao.py /baker/imagegen/compat/
COPY imagegen/weights /baker/imagegen/weights
COPY imagegen/model/__init__.py imagegen/model/quantization.py /baker/imagegen/model/
COPY imagegen/builder/__init__.py imagegen/builder/bake.py imagegen/builder/hub.py imagegen/builder/layer.sh \
    imagegen/builder/quantize.py /baker/imagegen/builder/

# The code, compiled: on a read-only disk, as another user, it could not be later. By hash, since times are rewritten.
FROM ${BASE_IMAGE} AS code
COPY handler.py test_input.json LICENSE /app/
COPY imagegen /app/imagegen
RUN python -m compileall -q --invalidation-mode unchecked-hash /app

FROM ${BASE_IMAGE}
# 1. System. Triton compiles its launchers with a C compiler, when a model is compiled.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/* \
    && useradd --uid 10001 --home-dir /tmp --no-create-home imagegen \
    && mkdir -p /opt/huggingface/hub \
    && chown -R imagegen: /opt/huggingface

# 2. Dependencies, each with its hash. PyPI's torch carries CUDA 13.0, for drivers from 580 on; TORCH_INDEX names an index
# with another build of the same version, such as https://download.pytorch.org/whl/cu126 for older ones, without a hash.
ENV PATH=/opt/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
ARG TORCH_INDEX=
RUN --mount=type=bind,source=locks/torch.txt,target=/locks/torch.txt \
    python -m venv /opt/venv \
    && if [ -n "$TORCH_INDEX" ]; then \
      grep -oE '^[a-z0-9-]+==[^ ]+' /locks/torch.txt > /tmp/pins.txt \
      && pip install -q -c /tmp/pins.txt --extra-index-url "$TORCH_INDEX" torch \
      && rm /tmp/pins.txt; \
    else \
      pip install -q --no-deps --require-hashes -r /locks/torch.txt; \
    fi
RUN --mount=type=bind,source=locks/worker.txt,target=/locks/worker.txt \
    pip install -q --no-deps --require-hashes -r /locks/worker.txt

# 3. Weights, a file a layer: each line bakes one more, the last all that is left, and none where there is nothing to bake.
# A build that broke off goes on at its line. The token is seen while a line runs and is in no layer.
ARG MODEL=klein-9b
ARG PRECISION=fp8
ARG REVISION=
# A mirror of the hub.
ARG HF_ENDPOINT=https://huggingface.co
RUN --mount=type=bind,from=baker,source=/baker,target=/baker --mount=type=cache,target=/work,sharing=locked \
    --mount=type=secret,id=hf_token sh /baker/imagegen/builder/layer.sh --files 1
RUN --mount=type=bind,from=baker,source=/baker,target=/baker --mount=type=cache,target=/work,sharing=locked \
    --mount=type=secret,id=hf_token sh /baker/imagegen/builder/layer.sh --files 1
RUN --mount=type=bind,from=baker,source=/baker,target=/baker --mount=type=cache,target=/work,sharing=locked \
    --mount=type=secret,id=hf_token sh /baker/imagegen/builder/layer.sh --files 1
RUN --mount=type=bind,from=baker,source=/baker,target=/baker --mount=type=cache,target=/work,sharing=locked \
    --mount=type=secret,id=hf_token sh /baker/imagegen/builder/layer.sh --files 1
RUN --mount=type=bind,from=baker,source=/baker,target=/baker --mount=type=cache,target=/work,sharing=locked \
    --mount=type=secret,id=hf_token sh /baker/imagegen/builder/layer.sh --files 1
RUN --mount=type=bind,from=baker,source=/baker,target=/baker --mount=type=cache,target=/work,sharing=locked \
    --mount=type=secret,id=hf_token sh /baker/imagegen/builder/layer.sh --files 1
RUN --mount=type=bind,from=baker,source=/baker,target=/baker --mount=type=cache,target=/work,sharing=locked \
    --mount=type=secret,id=hf_token sh /baker/imagegen/builder/layer.sh --files 1
RUN --mount=type=bind,from=baker,source=/baker,target=/baker --mount=type=cache,target=/work,sharing=locked \
    --mount=type=secret,id=hf_token sh /baker/imagegen/builder/layer.sh
# 4. What the worker serves where nobody says otherwise.
WORKDIR /app
RUN if [ "$MODEL" = none ]; then serves=klein-9b; else serves=$MODEL; fi; \
    echo "IMAGEGEN_MODEL=$serves" > /app/.env

# 5. Code, and micro's weights. HOME: with a disk that is read-only but for /tmp, whatever is cached goes there; any user may
# run it. NVIDIA's runtime gives GPUs to an image that asks for them, also without `--gpus`.
ENV HF_HOME=/opt/huggingface HOME=/tmp USER=imagegen PYTHONUNBUFFERED=1 PYTHONPATH=/app IMAGEGEN_HOST=0.0.0.0 \
    IMAGEGEN_OUTPUT_DIR=/tmp/outputs \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=code /app /app
USER 10001
EXPOSE 7000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=30m CMD ["python", "-m", "imagegen", "health"]
# No ENTRYPOINT, so that any other command is one: `docker run image-gen python handler.py --test_input`.
CMD ["python", "-m", "imagegen"]

ARG VERSION=0.0.0
ARG COMMIT=unknown
LABEL org.opencontainers.image.title="image-gen" \
      org.opencontainers.image.description="A serverless GPU worker and HTTP server for FLUX.2 [klein]" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$COMMIT" \
      dev.imagegen.model="$MODEL" \
      dev.imagegen.precision="$PRECISION"
