"""A job's stream within RunPod's bounds: a megabyte a message, so many previews, and large images in parts."""

from __future__ import annotations

from typing import Any

#: Previews of a job in its stream.
_PREVIEWS = 8
#: Characters of an image in one message of a stream, of which RunPod takes a megabyte.
CHUNK = 900_000


def previews_of_each(job_input: Any) -> int:
    """How often a stream shows each image of a job, for `_PREVIEWS` of them in all."""
    fields = job_input if isinstance(job_input, dict) else {}
    fields = openai if isinstance(openai := fields.get("openai_input"), dict) else fields
    count = fields.get("n") or fields.get("num_images") or 1
    return max(1, _PREVIEWS // count) if isinstance(count, int) and count > 0 else 1


def split(output: dict[str, Any]) -> list[dict[str, Any]]:
    """Takes the images out of an output, OpenAI's too, where they are too large for one message, and returns them in
    parts."""
    openai = [image for image in output.get("data", []) if "b64_json" in image]
    images = [image["b64_json"] for image in openai] or output.get("images", [])
    if sum(map(len, images)) <= CHUNK:
        return []
    for image in openai:
        image["b64_json"] = ""
    if "images" in output:
        output["images"] = []
    return [
        {"event": "image", "index": i, "part": start // CHUNK, "data": image[start : start + CHUNK]}
        for i, image in enumerate(images)
        for start in range(0, len(image), CHUNK)
    ]
