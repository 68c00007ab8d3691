"""From what a backend decodes to the type that a handler asked for: pydantic models, dataclasses, generated classes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import UnionType
from typing import Any, Union, get_args, get_origin

from deimos_async.errors import ConfigurationError, DecodeError, FieldError

__all__ = ["payload_converter"]


def payload_converter(wanted: Any, *, backend: str, where: str) -> Callable[[Any], Any] | None:
    """A function from a decoded payload to the wanted type; None where nothing is to be done.

    Args:
        wanted: What stands in `Message[...]`; Any for the backend's own type.
        backend: Name of the schema backend. `plain` payloads are text, or JSON for models and dataclasses.
        where: What to call the handler in errors.

    Raises:
        ConfigurationError: The type cannot be made from this backend's payloads.

    The function raises DecodeError with the path of every field that does not fit.
    """
    plain = backend == "plain"
    if get_origin(wanted) in (Union, UnionType):
        # `Message[Order | None]` says that tombstones come too; they are None without any conversion.
        others = [kind for kind in get_args(wanted) if kind is not type(None)]
        if len(others) == 1:
            wanted = others[0]
    if get_origin(wanted) is dict:
        wanted = dict
    if wanted is Any or (plain and wanted is bytes) or (not plain and wanted is dict):
        return None
    if plain and wanted is str:
        return _text
    is_model = hasattr(wanted, "model_validate")
    if not (is_model or dataclasses.is_dataclass(wanted) or (not plain and _is_typed_dict(wanted))):
        kinds = "bytes, str, a pydantic model or a dataclass" if plain else "dict, a pydantic model or a dataclass"
        raise ConfigurationError(
            f"{where}: Message[{getattr(wanted, '__name__', wanted)}] cannot be made from payloads of the schema "
            f"backend {backend!r}; use {kinds}"
        )
    # start-up time: pydantic is loaded only where a handler asks for a type
    from pydantic import PydanticUserError, TypeAdapter, ValidationError

    try:
        adapter: TypeAdapter[Any] = TypeAdapter(wanted)
    except PydanticUserError as error:
        raise ConfigurationError(
            f"{where}: Message[{getattr(wanted, '__name__', wanted)}] cannot be used: {error.message}"
        ) from error
    validate = adapter.validate_json if plain else adapter.validate_python

    def convert(payload: Any) -> Any:
        try:
            return validate(payload)
        except ValidationError as error:
            details = error.errors(include_input=False, include_url=False, include_context=False)
            raise DecodeError([FieldError(_path(detail["loc"]), detail["msg"]) for detail in details]) from None

    return convert


def _text(payload: bytes) -> str:
    try:
        return payload.decode()
    except UnicodeDecodeError as error:
        raise DecodeError(f"not UTF-8 at byte {error.start}") from error


def _is_typed_dict(wanted: Any) -> bool:
    return isinstance(wanted, type) and issubclass(wanted, dict) and hasattr(wanted, "__total__")


def _path(location: tuple[int | str, ...]) -> str:
    path = ""
    for step in location:
        if isinstance(step, int):
            path += f"[{step}]"
        else:
            path += f".{step}" if path else step
    return path
