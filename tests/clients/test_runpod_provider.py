"""RunPod's own provider for Vercel's AI SDK: each kind of payload that it builds, by the name of the model."""

import json

import pytest

from tests.support.images import scene

pytestmark = pytest.mark.slow  # `make slow` installs the clients

PROGRAM = """
import { readFile } from "node:fs/promises";
import { createRunpod } from "@runpod/ai-sdk-provider";
import { generateImage } from "ai";

const runpod = createRunpod({ apiKey: "key", baseURL: "BASE" });
const picture = await readFile("circle.png");
const text = "a red circle on a blue background", edit = { text: "make the circle green", images: [picture] };
const calls = [
  ["black-forest-labs/flux-1-dev", { prompt: text, size: "512x512" }],
  ["black-forest-labs/flux-1-kontext-dev", { prompt: text, size: "512x512", seed: 3 }],
  ["black-forest-labs/flux-1-kontext-dev", { prompt: edit, size: "512x512" }],
  ["qwen/qwen-image", { prompt: text, size: "512x512" }],
  ["qwen/qwen-image-edit", { prompt: edit, size: "512x512" }],
  ["tongyi-mai/z-image-turbo", { prompt: text, size: "512x512" }],
  ["pruna/p-image-t2i", { prompt: text, aspectRatio: "16:9" }],
  ["pruna/p-image-edit", { prompt: edit, aspectRatio: "1:1" }],
  ["nano-banana-edit", { prompt: edit }],
  ["nano-banana-pro", { prompt: text, aspectRatio: "1:1" }],
  ["qwen/qwen-image-edit-2511", { prompt: edit, size: "512x512" }],
];
const seen = {};
for (const [name, options] of calls) {
  const fast = name.includes("flux") ? { num_inference_steps: 4 } : {};
  const { image } = await generateImage({ model: runpod.image(name), ...options, providerOptions: { runpod: fast } });
  seen[`${name} ${typeof options.prompt}`] = image.mediaType;
}
console.log(JSON.stringify(seen));
"""


def test_every_call_works(run, endpoint, tmp_path):
    scene("circle", "red", "blue").save(tmp_path / "circle.png")
    seen = json.loads(run("js", PROGRAM.replace("BASE", f"{endpoint}/endpoint")))
    assert len(seen) == 11
    assert set(seen.values()) == {"image/png", "image/jpeg"}
