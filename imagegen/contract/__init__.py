"""What a caller can send and receive: fields, limits, defaults, events. Knows nothing of models' code or HTTP."""
