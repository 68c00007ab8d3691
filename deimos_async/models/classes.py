"""What a class says that users derive from ours: the model in its brackets, and hooks that cannot be called."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Mapping
from importlib import import_module
from typing import Any, ForwardRef, TypeVar, get_args, get_origin

from deimos_async.models.hooks import takes

__all__ = ["hook_problems", "model_of"]


def model_of(cls: type, base: type) -> Any:
    """What stands in the brackets of `base[...]`, of the class or of the nearest one it derives from.

    None for Any, and where there is nothing. A name is looked up in the class's module, one with dots where it says; it
    is returned itself while it means nothing.
    """
    for owner in cls.__mro__:
        for written in owner.__dict__.get("__orig_bases__", ()):
            origin = get_origin(written)
            if isinstance(origin, type) and issubclass(origin, base):
                found = get_args(written)[0]
                if found is Any:
                    return None
                if not isinstance(found, TypeVar):
                    return _named(found.__forward_arg__, owner) if isinstance(found, ForwardRef) else found
    return None


def _named(name: str, owner: type) -> Any:
    module, _, last = name.rpartition(".")
    try:
        return getattr(import_module(module or owner.__module__), last)
    except (ImportError, AttributeError):
        return name


def hook_problems(instance: Any, base: type, hooks: Mapping[str, int], awaited: Collection[str]) -> Iterator[str]:
    """What is wrong with the hooks of an instance.

    Args:
        hooks: Names, and how many arguments they are called with.
        awaited: Names of those that are `async def`.
    """
    for name, count in hooks.items():
        hook = getattr(instance, name)
        if not callable(hook):
            yield f"{name} must be a method"
            continue
        if inspect.iscoroutinefunction(hook) is not (name in awaited):
            yield f"{name} must be {'async def' if name in awaited else 'a plain method, not async def'}"
        if not takes(hook, count):
            wanted = ", ".join(inspect.signature(getattr(base, name)).parameters)
            yield f"{name} is called with other arguments than it takes; write it as {name}({wanted})"
