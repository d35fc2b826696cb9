"""RunPod's queue: which jobs to take when, progress, streams, and answers that are delivered."""
