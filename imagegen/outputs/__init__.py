"""Generated images as files: encoded, with a provenance record, signed, uploaded."""
