"""`make micro`: the miniature model from nothing, or from one that is there (`--init-from FOLDER`).

Each stage leaves its result in `build/micro` and is skipped when that is there; a training that was stopped goes on
from its last checkpoint, optimizer and all. `--stage export` makes a model of what it has so far. Another recipe or
another start wants another `--work`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from imagegen.models import MICRO_PATH

SEED = 2026
TEXT_ENCODER_STEPS = 500
VAE_STEPS = 6000
#: Of about 24 optimizer steps each.
TRANSFORMER_ROUNDS, _CONTINUED_ROUNDS = 1800, 100
#: Processes that train the transformer, each with a batch and a thread of its own: part of the recipe, as the batch is.
PROCESSES = 2

_DIFFUSERS = "diffusion_pytorch_model.safetensors"
#: What `--init-from` takes of a model as it is: from where, to where in the work.
_TAKEN = {"text_encoder/model.safetensors": "text_encoder.safetensors", f"vae/{_DIFFUSERS}": "vae.safetensors"}
STAGES = ("text-encoder", "vae", "pool", "transformer", "export")


def run_stage(stage: str, work: Path, out: Path, start: Path | None) -> None:
    """Runs one stage in this process; reads and writes the files of `work`.

    Args:
        start: the folder of a model whose transformer is trained further.
    """
    # Imported here, so that OMP's settings of main() are in the environment before torch is.
    from imagegen.builder.micro.tokenizer import build_tokenizer

    if stage == "text-encoder":
        from imagegen.builder.micro.text_encoder import train_text_encoder

        train_text_encoder(build_tokenizer(), work / "text_encoder.safetensors", TEXT_ENCODER_STEPS, SEED)
    elif stage == "vae":
        from imagegen.builder.micro.vae import train_vae

        train_vae(work / "vae.safetensors", VAE_STEPS, SEED)
    elif stage == "pool":
        from imagegen.builder.micro.pool import build_pool

        build_pool(work, SEED)
    elif stage == "transformer":
        from imagegen.builder.micro.transformer import train_transformer

        weights = start and start / "transformer" / _DIFFUSERS
        train_transformer(work, _CONTINUED_ROUNDS if start else TRANSFORMER_ROUNDS, SEED, weights)
    else:
        from imagegen.builder.micro.export import export

        export(work, out)


def main() -> int:
    """Runs the stages that have not been run; the text encoder and the VAE side by side, a core each."""
    parser = argparse.ArgumentParser(prog="python -m imagegen.builder.micro", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/micro"), help="where the stages leave their results")
    parser.add_argument("--out", type=Path, default=MICRO_PATH, help="where the model is written")
    parser.add_argument("--init-from", type=Path, help="a model whose transformer is trained further, and no more")
    parser.add_argument("--stage", choices=STAGES, help="run this stage alone")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that what they started ends as well
    if args.stage:
        run_stage(args.stage, args.work, args.out, args.init_from)
        return 0

    results = {
        "text-encoder": "text_encoder.safetensors",
        "vae": "vae.safetensors",
        "pool": "pool.pt",
        "transformer": "transformer.safetensors",
    }
    begun = time.monotonic()
    for name, taken in _TAKEN.items() if args.init_from else ():
        if not (args.work / taken).exists():
            partial = args.work / f"{taken}.part"  # a half file would pass for a stage's result after a stop
            shutil.copy(args.init_from / name, partial)
            partial.replace(args.work / taken)
    for together in (("text-encoder", "vae"), ("pool",), ("transformer",), ("export",)):
        wanted = [stage for stage in together if stage == "export" or not (args.work / results[stage]).exists()]
        alone = len(together) == 1 and together != ("transformer",)
        threads = (os.cpu_count() or 1) if alone else 1
        # Spinning barriers collapse as soon as anything else runs on the machine.
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
        command = ["-m", "imagegen.builder.micro", "--work", str(args.work), "--out", str(args.out)]
        command += ["--init-from", str(args.init_from)] if args.init_from else []
        if together == ("transformer",):
            command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={PROCESSES}", *command]
        running = [subprocess.Popen([sys.executable, *command, "--stage", stage], env=environment) for stage in wanted]
        try:
            if any(process.wait() for process in running):
                return 1
        finally:
            for process in running:
                process.terminate()
    print(f"{args.out} is made, in {(time.monotonic() - begun) / 60:.0f} minutes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
