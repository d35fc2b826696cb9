"""Which precision and offload a GPU's memory has room for, by arithmetic. Loads nothing."""
