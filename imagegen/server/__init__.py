"""The schemas that both doors share, the pipeline, and the HTTP door."""
