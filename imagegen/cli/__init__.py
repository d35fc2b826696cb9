"""The command line: the container's entry point, the health check, and reading an image's record."""
