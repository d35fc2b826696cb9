"""The miniature's training: stopped and gone on with, in one process and in two, and from a model that is there."""

import os
import random
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import Flux2KleinPipeline
from safetensors.torch import load_file
from torch import multiprocessing

from imagegen.builder.micro import pool, text_encoder, training, transformer, vae
from imagegen.builder.micro.export import export
from imagegen.builder.micro.samples import draw_sample
from imagegen.builder.micro.text_encoder import build_text_encoder
from imagegen.builder.micro.tokenizer import build_tokenizer
from imagegen.builder.micro.training import save
from imagegen.builder.micro.transformer import build_transformer
from imagegen.builder.micro.vae import build_vae
from imagegen.models import MICRO_PATH

SMALL = dict.fromkeys(transformer.BATCH, 3)


class Stopped(BaseException):
    pass


@contextmanager
def stopping(at: int | None) -> Iterator[None]:
    """Stops a training at the end of its step `at`, which is not told any more."""
    done = training.Progress.__call__

    def stop(progress, step, **values):
        if step == at:
            raise Stopped
        done(progress, step, **values)

    training.Progress.__call__ = stop
    try:
        yield
    finally:
        training.Progress.__call__ = done


def train(rank: int, folder: Path, processes: int, port: int, stop_at: int | None) -> None:
    """Five rounds, or a stop in the fourth; as one of several processes, which are spawned: no fixture reaches them."""
    transformer._CHECKPOINT_EVERY, transformer.BATCH = 2, SMALL
    if processes > 1:
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(processes), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        torch.set_num_threads(1)
    with stopping(stop_at):
        transformer.train_transformer(folder, 5, 1, None)


@pytest.fixture
def tiny_pool(tmp_path, monkeypatch):
    """A folder with the stages before the transformer's, untrained and tiny."""
    monkeypatch.setattr(transformer, "_CHECKPOINT_EVERY", 2)
    monkeypatch.setattr(transformer, "BATCH", SMALL)
    monkeypatch.setattr(pool, "_PIECE", 3)
    monkeypatch.setattr(pool, "COUNTS", {("generate", 64, 64): 8, ("edit", 64, 96): 4, ("combine3", 64, 64): 4})
    folder = tmp_path / "whole"
    folder.mkdir()
    save(build_text_encoder(build_tokenizer()), folder / "text_encoder.safetensors")
    save(build_vae(), folder / "vae.safetensors")
    pool.build_pool(folder, 1)
    built = torch.load(folder / "pool.pt", weights_only=False)
    for group, ((kind, width, height), count) in zip(built.groups, pool.COUNTS.items(), strict=True):
        assert group.kind == kind
        assert group.target.shape == (count, width * height // 256, 32)
        assert len(group.captions) == len(group.references) == len(group.play) == count
        first = draw_sample(kind, random.Random(f"1-{kind}-{width}x{height}-0"))
        scenes = (first.target, *first.references)
        assert group.kinds[0].tolist() == [pool._kinds(scene, width, height).tolist() for scene in scenes]
        assert group.outlines[0].tolist() == [pool._outlines(scene, width, height).tolist() for scene in scenes]
        assert len(group.kinds) == len(group.outlines) == count
    return folder


def same_weights(one: Path, other: Path) -> bool:
    first, second = (load_file(folder / "transformer.safetensors") for folder in (one, other))
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow  # it trains three times, half a minute
def test_a_stopped_training_goes_on_as_if_it_had_not_been(tiny_pool, tmp_path):
    """The same weights in the end, and a model of those so far."""
    stopped = tmp_path / "stopped"
    shutil.copytree(tiny_pool, stopped)
    train(0, tiny_pool, 1, 0, None)
    with pytest.raises(Stopped):
        train(0, stopped, 1, 0, 3)
    (tmp_path / "model" / "loras").mkdir(parents=True)
    for kept in ("README.md", "loras/a.safetensors"):
        (tmp_path / "model" / kept).write_text(kept)
    export(stopped, tmp_path / "model")
    for kept in ("README.md", "loras/a.safetensors"):
        assert (tmp_path / "model" / kept).read_text() == kept
    assert Flux2KleinPipeline.from_pretrained(tmp_path / "model").transformer.config.num_layers == 2
    train(0, stopped, 1, 0, None)
    assert same_weights(tiny_pool, stopped)
    start, trained = build_transformer().state_dict(), load_file(stopped / "transformer.safetensors")
    assert not all(torch.equal(trained[name], start[name]) for name in trained)


@pytest.mark.slow  # as above
def test_a_training_goes_on_from_weights_and_sees_mixed_batches(tiny_pool, monkeypatch):
    """At a rate of nothing the weights stay; the heads, which begin anew, learn all the same."""
    monkeypatch.setattr(transformer, "_CONTINUED", 0.0)
    weights = MICRO_PATH / "transformer" / "diffusion_pytorch_model.safetensors"
    noted: list[str] = []
    monkeypatch.setattr(training.Progress, "note", lambda _, **values: noted.extend(values))
    transformer.train_transformer(tiny_pool, 2, 1, weights)
    assert noted.count("mixed") == 2 * transformer._MIXED
    was, now = load_file(weights), load_file(tiny_pool / "transformer.safetensors")
    assert all(torch.allclose(was[name].float(), now[name], atol=1e-6) for name in was)
    heads = torch.load(tiny_pool / "transformer.pt", weights_only=True)["trainee"]
    assert all(heads[f"{name}.0.bias"].any() for name in ("numbers", "shapes"))  # a norm's, 0 at the start


@pytest.mark.slow  # as above
@pytest.mark.parametrize(
    ("module", "train"),
    [
        (text_encoder, partial(text_encoder.train_text_encoder, build_tokenizer())),
        (vae, vae.train_vae),
    ],
)
def test_the_other_parts_go_on_as_well(module, train, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_CHECKPOINT_EVERY", 1)
    whole, stopped = tmp_path / "whole.safetensors", tmp_path / "stopped.safetensors"
    train(whole, 2, 1)
    with pytest.raises(Stopped), stopping(1):
        train(stopped, 2, 1)
    assert not stopped.exists()
    with pytest.raises(ValueError, match=r"stopped\.pt is of 2 steps; it cannot go on with 3"):
        train(stopped, 3, 1)
    told: list[int] = []
    monkeypatch.setattr(training.Progress, "__call__", lambda _, step, **values: told.append(step))
    train(stopped, 2, 1)
    assert told == [1]
    first, second = load_file(whole), load_file(stopped)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow  # as above, in processes that import torch each
def test_two_processes_train_one_model(tiny_pool, tmp_path):
    """Where one stops, so does the other; they go on as if they had not; one alone does not go on in their place."""
    stopped = tmp_path / "stopped"
    shutil.copytree(tiny_pool, stopped)

    def run(folder, stop_at=None):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        multiprocessing.spawn(train, (folder, 2, port, stop_at), nprocs=2)

    run(tiny_pool)
    with pytest.raises((multiprocessing.ProcessRaisedException, multiprocessing.ProcessExitedException)):
        run(stopped, stop_at=3)
    with pytest.raises(ValueError, match="of 2 processes; it cannot go on with 1"):
        train(0, stopped, 1, 0, None)
    run(stopped)
    assert same_weights(tiny_pool, stopped)


@pytest.mark.slow  # as above
def test_a_model_that_is_there_is_the_start(tiny_pool, tmp_path):
    """Its text encoder and VAE are taken as they are; what is in the folder of the work already is not made again."""
    for name in ("text_encoder", "vae"):
        (tiny_pool / f"{name}.safetensors").unlink()
    save(build_transformer(), tiny_pool / "transformer.safetensors")
    folders = ["--work", str(tiny_pool), "--out", str(tmp_path / "model"), "--init-from", str(MICRO_PATH)]
    subprocess.run([sys.executable, "-m", "imagegen.builder.micro", *folders], check=True, timeout=300)
    for name in ("text_encoder/model", "transformer/diffusion_pytorch_model"):
        was, now = (load_file(folder / f"{name}.safetensors") for folder in (MICRO_PATH, tmp_path / "model"))
        same = [torch.equal(was[key], now[key]) for key in was]
        assert all(same) if name.startswith("text") else not all(same)
    assert not list(tiny_pool.glob("*.part"))
