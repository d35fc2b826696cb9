"""LoRA adapters as files: which layers of a model they change, in which naming, and whether a file is one at all. Knows
nothing of torch."""
