"""The LoRA adapters of a worker: those that jobs may name, and the ones used last in main memory."""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from imagegen.contract.loras import Lora, UsedLora
from imagegen.engine import lora_sources
from imagegen.errors import BadLora, InvalidInput
from imagegen.lora.header import Broken, Header
from imagegen.models import ModelSpec
from imagegen.settings import Settings

if TYPE_CHECKING:
    from imagegen.model.adapters import Adapter, Scaled
    from imagegen.model.pipeline import FluxPipeline

#: Names that an error lists.
_LISTED = 20


class Chosen(NamedTuple):
    """The adapters of a job, and what its answer says of them."""

    adapters: tuple[Scaled, ...] = ()
    used: tuple[UsedLora, ...] = ()


class LoraLibrary:
    """Adapters by name. Made where the model is loaded: what is not on this machine is downloaded.

    Raises:
        ConfigurationError: IMAGEGEN_LORAS is wrong, or names what is not available.
    """

    def __init__(self, settings: Settings, spec: ModelSpec) -> None:
        self._settings, self._spec = settings, spec
        #: By name. A fault is found at the start, by the header, or when the values are read for a first job.
        self.entries = lora_sources.list_entries(settings, spec)
        self._kept: OrderedDict[str, Adapter] = OrderedDict()
        self._lock = threading.Lock()

    async def choose(self, loras: list[Lora], pipeline: FluxPipeline) -> Chosen:
        """The adapters that a job asks for, in the type of the loaded pipeline, read where they are not in memory.

        Raises:
            InvalidInput: a name is unknown, or their ranks are together too many.
            BadLora: one is broken, for another model, or cannot be fetched.
        """
        if not loras:
            return Chosen()
        from imagegen.model.adapters import Scaled

        adapters, used, dtype = [], [], pipeline.dtype
        for i, lora in enumerate(loras):
            if lora.name is not None:
                name, adapter = lora.name, await asyncio.to_thread(self._named, lora.name, f"loras[{i}].name", dtype)
            else:
                name, adapter = await self._fetched(str(lora.url), f"loras[{i}].url", dtype)
            adapters.append(Scaled(adapter, lora.scale))
            used.append(UsedLora(name=name, scale=lora.scale))
        if len({one.name for one in used}) < len(used):
            raise InvalidInput("loras: one comes twice; give each once, with its scale", "loras")
        if (rank := sum(one.adapter.rank for one in adapters)) > self._settings.lora_rank:
            raise InvalidInput(
                f"loras: their ranks are together {rank}; {self._settings.lora_rank} are allowed (IMAGEGEN_LORA_RANK)",
                "loras",
            )
        return Chosen(tuple(adapters), tuple(used))

    def _named(self, name: str, field: str, dtype: Any) -> Adapter:
        entry = self.entries.get(name)
        if entry is None:
            known = ", ".join(list(self.entries)[:_LISTED]) or "none"
            more = ", ..." if len(self.entries) > _LISTED else ""
            raise InvalidInput(f"{field}: {name!r} is not known; known are {known}{more}", field)
        if entry.fault is not None:
            raise BadLora(f"{field}: {name} {entry.fault}", field)
        return self._read(name, entry.file, field, dtype)

    async def _fetched(self, url: str, field: str, dtype: Any) -> tuple[str, Adapter]:
        lora_sources.check_host(url, field, self._settings)
        data = await lora_sources.download(url, field, self._settings, self._spec, self._settings.lora_hosts)
        name = f"sha256:{hashlib.sha256(data).hexdigest()}"

        def read() -> Adapter:
            with tempfile.NamedTemporaryFile(suffix=".safetensors") as file:
                file.write(data)
                file.flush()
                return self._read(name, Path(file.name), field, dtype)

        return name, await asyncio.to_thread(read)

    def _read(self, name: str, file: Path, field: str, dtype: Any) -> Adapter:
        """An adapter from memory, or from its file, which is checked again: it may have changed since the start."""
        from imagegen.model.adapters import read_adapter

        with self._lock:  # one at a time: two jobs would read the same file twice
            if (kept := self._kept.pop(name, None)) is not None:
                self._kept[name] = kept
                return kept
            try:
                checked: Header = lora_sources.check_file(file, self._settings, self._spec)
                adapter = read_adapter(file, checked, dtype)
            except Broken as error:
                if name in self.entries:
                    self.entries[name] = replace(self.entries[name], header=None, fault=str(error))
                raise BadLora(f"{field}: it {error}", field) from None
            except OSError as error:
                raise BadLora(f"{field}: it cannot be read ({type(error).__name__})", field) from None
            self._kept[name] = adapter
            most = self._settings.lora_cache_mb * 1e6
            while self._kept and sum(one.bytes for one in self._kept.values()) > most:
                self._kept.popitem(last=False)
            return adapter


def describe(entries: Iterable[lora_sources.Entry]) -> list[dict[str, Any]]:
    """Adapters as `/capabilities` lists them: rank and layers of one that can be used, the fault of one that cannot."""
    return [
        {"name": entry.name, "fault": entry.fault}
        if entry.header is None
        else {"name": entry.name, "rank": entry.header.rank, "layers": entry.header.layers}
        for entry in entries
    ]
