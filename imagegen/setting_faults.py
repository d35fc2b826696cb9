"""Settings read from the environment and `.env`, with every fault said in words: which variable, what it holds, what is
allowed. A misspelt variable is a fault too: the setting that was meant would silently keep its default."""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, TypeVar, get_args, get_origin

from dotenv import dotenv_values
from pydantic import AliasChoices, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

from imagegen.errors import ConfigurationError

log = logging.getLogger(__name__)

S = TypeVar("S", bound=BaseSettings)
#: What the names of this project's own variables begin with.
_PREFIX = "IMAGEGEN_"
#: From this similarity on (difflib's, 0 to 1) a name counts as misspelt: PRESICION has 0.89, HOME for HOST 0.5.
_SIMILAR = 0.75


def read(schema: type[S]) -> S:
    """The settings of this process.

    Raises:
        ConfigurationError: a variable has a value that is not allowed or a misspelt name, or `.env` cannot be read.
    """
    fields = {name: field for field in schema.model_fields.values() for name in variables(field)}
    env_file, encoding = Path(str(schema.model_config["env_file"])), schema.model_config["env_file_encoding"]
    try:
        _check_names([*os.environ, *dotenv_values(env_file, encoding=encoding)], list(fields))
        return schema()
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0])
        if first["type"] == "value_error":  # a validator's own words
            raise ConfigurationError(f"{name}: {first['ctx']['error']}") from None
        raise ConfigurationError(f"{name}: {_fault(fields[name], first['input'])}") from None
    except (UnicodeError, OSError) as error:
        raise ConfigurationError(f"{env_file}: cannot be read as UTF-8 text ({type(error).__name__})") from None


def variables(field: FieldInfo) -> list[str]:
    """The environment variables of a setting; the first is the one to use."""
    alias = field.validation_alias
    return [str(choice) for choice in alias.choices] if isinstance(alias, AliasChoices) else [str(alias)]


def choices(field: FieldInfo) -> list[str]:
    """The values that a variable may have, where they can be listed."""
    if field.annotation is bool:
        return ["true", "false"]
    kinds = [field.annotation, *get_args(field.annotation)]
    return [str(value) for kind in kinds if get_origin(kind) is Literal for value in get_args(kind)]


def allowed(field: FieldInfo) -> str:
    """The values that a variable may have, in words; empty where any text will do."""
    if listed := choices(field):
        return ", ".join(listed)
    words = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
    bounds = {word: getattr(part, word) for part in field.metadata for word in words if hasattr(part, word)}
    if {"ge", "le"} <= bounds.keys():
        return f"{bounds['ge']} to {bounds['le']}"
    return ", ".join(f"{words[word]} {value}" for word, value in bounds.items())


def _fault(field: FieldInfo, value: object) -> str:
    kinds = (field.annotation, *get_args(field.annotation))
    shown = "its value" if SecretStr in kinds else f"{str(value)[:60]!r}"
    number = "a whole number, " if int in kinds else "a number, " if float in kinds else ""
    return f"{shown} is not allowed; allowed: {number}{allowed(field)}"


def _check_names(names: Iterable[str], known: list[str]) -> None:
    """Finds this project's variables that no setting reads.

    Raises:
        ConfigurationError: one is nearly a setting's name. Others are warned of: they may belong to another version.
    """
    suffixes = [name.removeprefix(_PREFIX) for name in known if name.startswith(_PREFIX)]
    for name in names:
        if "\0" in name:
            raise UnicodeError("UTF-16 without a mark")
        if not name.upper().startswith(_PREFIX) or name in known:
            continue
        near = difflib.get_close_matches(name.upper().removeprefix(_PREFIX), suffixes, 1, _SIMILAR)
        if near:
            raise ConfigurationError(f"{name}: there is no such setting; did you mean {_PREFIX}{near[0]}?")
        log.warning("%s: there is no such setting; it has no effect", name)
