"""What a memory plan chooses between."""

from __future__ import annotations

from typing import Literal

#: In which precision a part runs. bf16 is the reference, and on a CPU float32; the others are of its blocks' weights.
Precision = Literal["bf16", "fp8", "int8", "nf4"]
#: What is not on the GPU all the time: nothing; the text encoder's table of words; the whole text encoder, which comes
#: for its turn; that and the transformer, which comes for an image; every part, of which a layer at a time comes.
Offload = Literal["none", "embeddings", "text_encoder", "model", "group"]
