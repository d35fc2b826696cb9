"""The HTTP server: the native API, OpenAI's API and the page."""
