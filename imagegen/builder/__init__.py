"""What runs before the worker does: downloading, quantizing and baking weights, and training the miniature."""
