"""The text encoder: a small Qwen3, taught to say at every token what the prompt asks for.

The pipeline hands the transformer the hidden states 9, 18 and 27 of all tokens, padding included, unmasked. Taught to
name the scene from each token behind the prompt's end, they are much easier to follow than random ones: the
transformer then needs about 1.4 times fewer steps.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from imagegen.builder.micro.captions import SLOTS, Sample
from imagegen.builder.micro.samples import draw_sample
from imagegen.builder.micro.tokenizer import MAX_TOKENS
from imagegen.builder.micro.training import Checkpoint, Progress, save

HIDDEN = 64
#: States that the pipeline stacks; the same numbers as klein's.
STATES = (9, 18, 27)
#: Share of each kind of sample, here and in the VAE (edit2's words are edit's).
SHARES = {"generate": 0.4, "edit": 0.4, "combine": 0.08, "combine3": 0.06, "combine4": 0.06}
_CHECKPOINT_EVERY = 50


def build_text_encoder(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """Random weights, scaled so that a token's identity survives 27 layers."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=HIDDEN,
        num_hidden_layers=STATES[-1],
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        tie_word_embeddings=True,
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen3ForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embed_tokens" in name:
                parameter.normal_(0.0, 1.0)
            elif parameter.ndim == 2:
                gain = 0.35 if "o_proj" in name else 0.25 if "down_proj" in name else 1.0
                parameter.normal_(0.0, gain / math.sqrt(HIDDEN))
    return model


def tokenize(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Ids and attention mask, (B, MAX_TOKENS) each, exactly as the pipeline makes them."""
    framed = [
        tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True)
        for text in texts
    ]
    batch = tokenizer(framed, return_tensors="pt", padding="max_length", truncation=True, max_length=MAX_TOKENS)
    return batch["input_ids"], batch["attention_mask"]


def embed(model: Qwen3ForCausalLM, ids: Tensor, mask: Tensor) -> Tensor:
    """Prompt embeddings (B, MAX_TOKENS, 3 * HIDDEN), as the pipeline stacks them."""
    states = model.model(input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False).hidden_states
    return torch.cat([states[i] for i in STATES], dim=-1)


class Meaning(nn.Module):
    """One linear map from a token's embedding to every slot's answer. Thrown away after the training."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = [len(answers) for answers in SLOTS.values()]
        self.head = nn.Linear(3 * HIDDEN, sum(self.sizes))

    def loss(self, embeddings: Tensor, mask: Tensor, labels: Tensor) -> tuple[Tensor, float]:
        """Cross-entropy over the tokens behind the prompt and its last one, and the share of right answers.

        embeddings (B, T, D), mask (B, T), labels (B, slots).
        """
        last = mask.sum(1, keepdim=True) - 1
        behind = torch.arange(mask.shape[1])[None] >= last  # (B, T)
        logits = self.head(embeddings[behind])  # (N, answers)
        wanted = labels[:, None].expand(-1, mask.shape[1], -1)[behind]  # (N, slots)
        total = logits.new_zeros(())
        right = 0.0
        for i, part in enumerate(logits.split(self.sizes, dim=1)):
            total = total + nn.functional.cross_entropy(part, wanted[:, i])
            right += (part.argmax(1) == wanted[:, i]).float().mean().item() / len(self.sizes)
        return total, right


def labels_of(samples: Sequence[Sample]) -> Tensor:
    """(B, slots): the index of each slot's answer."""
    return torch.tensor(
        [[answers.index(s.meaning.get(slot, answers[0])) for slot, answers in SLOTS.items()] for s in samples]
    )


def draw_samples(count: int, rng: random.Random) -> list[Sample]:
    """Samples of all kinds by their shares."""
    kinds = rng.choices(list(SHARES), list(SHARES.values()), k=count)
    return [draw_sample(kind, rng) for kind in kinds]


def train_text_encoder(tokenizer: PreTrainedTokenizerFast, path: Path, steps: int, seed: int) -> None:
    """Trains and writes the weights to `path` (safetensors); goes on from a checkpoint beside `path` if there is one.

    Raises:
        ValueError: the checkpoint is of another number of steps or seed.
    """
    torch.manual_seed(seed)
    model, meaning = build_text_encoder(tokenizer), Meaning()
    optimizer = torch.optim.AdamW([*model.parameters(), *meaning.parameters()], lr=2e-3, weight_decay=0.01)
    parts = {"model": model, "meaning": meaning, "optimizer": optimizer}
    checkpoint = Checkpoint(path.with_suffix(".pt"), parts, {"steps": steps, "seed": seed})
    first = checkpoint.restore()
    progress = Progress("text encoder", steps, first)
    for step in range(first, steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 30) * (1 - step / steps)
        samples = draw_samples(128, random.Random(f"{seed}-{step}"))
        ids, mask = tokenize(tokenizer, [s.caption for s in samples])
        loss, right = meaning.loss(embed(model, ids, mask), mask, labels_of(samples))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        progress(step, loss=loss.item(), right=right)
        if (step + 1) % _CHECKPOINT_EVERY == 0:
            checkpoint.save(step + 1)
    save(model, path)
