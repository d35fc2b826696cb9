"""A serverless GPU worker for FLUX.2 [klein]: text to image, and editing with one to four reference images."""

__version__ = "0.1.0"
