"""Measurements of speed and memory, each against a baseline in the same run."""
