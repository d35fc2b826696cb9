# One layer of weights, as the Dockerfile asks for it: what bake does not finish here, the next layer goes on with.
cd /baker
HF_HOME=/work exec python -m imagegen.builder.bake "$MODEL" --precision "$PRECISION" ${REVISION:+--revision "$REVISION"} \
  --into /opt/huggingface --token-file /run/secrets/hf_token --optional "$@"
