"""A job from its request to its response: admission, threads, the GPU's queue, deadlines, cancellation."""
