"""What an operator sees of a worker beside its log: metrics, traces, and the state of the GPU itself."""
