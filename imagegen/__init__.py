"""A serverless GPU worker and HTTP server for FLUX.2 [klein]: text to image, and editing with one to four references."""

__version__ = "0.1.0"
