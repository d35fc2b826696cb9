"""`make micro`: the miniature model from nothing.

Each stage leaves its result in `build/micro` and is skipped when that is there; a transformer that was stopped goes on
from its last checkpoint, optimizer and all.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

SEED = 2026
TEXT_ENCODER_STEPS = 500
VAE_STEPS = 2400
TRANSFORMER_STEPS = 9000

STAGES = ("text-encoder", "vae", "pool", "transformer", "export")


def run_stage(stage: str, work: Path, out: Path) -> None:
    """Runs one stage in this process; reads and writes the files of `work`."""
    # Imported here, so that OMP's settings of main() are in the environment before torch is.
    from builder.micro.tokenizer import build_tokenizer

    if stage == "text-encoder":
        from builder.micro.text_encoder import train_text_encoder

        train_text_encoder(build_tokenizer(), str(work / "text_encoder.safetensors"), TEXT_ENCODER_STEPS, SEED)
    elif stage == "vae":
        from builder.micro.vae import train_vae

        train_vae(str(work / "vae.safetensors"), VAE_STEPS, SEED)
    elif stage == "pool":
        from builder.micro.pool import build_pool

        build_pool(work, SEED)
    elif stage == "transformer":
        from builder.micro.transformer import train_transformer

        train_transformer(work, TRANSFORMER_STEPS, SEED)
    else:
        from builder.micro.export import export

        export(work, out)


def main() -> int:
    """Runs the stages that have not been run; the text encoder and the VAE side by side, a core each."""
    parser = argparse.ArgumentParser(prog="python -m builder.micro", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/micro"), help="where the stages leave their results")
    parser.add_argument("--out", type=Path, default=Path("models/micro"), help="where the model is written")
    parser.add_argument("--stage", choices=STAGES, help="run this stage alone")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.stage:
        run_stage(args.stage, args.work, args.out)
        return 0

    results = {
        "text-encoder": "text_encoder.safetensors",
        "vae": "vae.safetensors",
        "pool": "pool.pt",
        "transformer": "transformer.safetensors",
    }
    begun = time.monotonic()
    for together in (("text-encoder", "vae"), ("pool",), ("transformer",), ("export",)):
        wanted = [stage for stage in together if stage == "export" or not (args.work / results[stage]).exists()]
        threads = max(1, (os.cpu_count() or 1) // max(1, len(wanted)))
        # Spinning barriers collapse as soon as anything else runs on the machine.
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
        command = [sys.executable, "-m", "builder.micro", "--work", str(args.work), "--out", str(args.out), "--stage"]
        running = [subprocess.Popen([*command, stage], env=environment) for stage in wanted]
        statuses = [process.wait() for process in running]
        if any(statuses):
            return 1
    print(f"{args.out} is made, in {(time.monotonic() - begun) / 60:.0f} minutes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
