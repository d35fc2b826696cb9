"""The diffusers pipeline: loading, generating, previews, unloading. Knows nothing of jobs or queues."""
