"""One job while it runs: what was asked for, who is notified, and what is known of it so far."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from PIL import Image

from imagegen.contract.events import Event
from imagegen.contract.requests import Request
from imagegen.contract.schemas import Timings
from imagegen.outputs.object_store import ObjectStore


@dataclass
class Job:
    """One job. Any thread may call `notify`; whoever sets `stop` no longer waits for the job."""

    id: str
    request: Request
    notify: Callable[[Event], None]
    #: How often each image is shown as it forms.
    previews: int
    #: Of its images, where the request names none.
    default_seed: int
    #: Bytes that its transport can carry; None: any.
    max_answer: int | None = None
    store: ObjectStore | None = None
    #: Of time.monotonic().
    begun: float = field(default_factory=time.monotonic)
    stop: threading.Event = field(default_factory=threading.Event)
    timings: Timings = field(default_factory=Timings)
    references: list[Image.Image] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    #: Whether the cache had the prompt's embeddings; None before they are there.
    prompt_cached: bool | None = None
