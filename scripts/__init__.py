"""What a user of the worker runs beside it."""
