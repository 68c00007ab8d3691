"""What a class of model consumers says: by its settings and by hooks that are asked at start."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from deimos_async.consuming.consumer import Circumstances
from deimos_async.models.mapping import ModelTable
from deimos_async.topics import UNSET

__all__ = ["ask", "named_columns", "setting", "takes"]


def setting(cls: Any, circumstances: Circumstances, name: str) -> Any:
    """What the topic says, or `app.defaults`; else the class."""
    found = getattr(circumstances.options, name)
    return getattr(cls, name) if found is UNSET else found


def takes(hook: Callable[..., Any], count: int) -> bool:
    """Whether it can be called with so many arguments. Of some built-in functions that is not known."""
    try:
        inspect.signature(hook).bind(*[None] * count)
    except TypeError:
        return False
    except ValueError:
        return True
    return True


def ask(consumer: Any, hook: str, model: Any, *, is_own: bool) -> Any:
    """What a hook says about a model; None: nothing. One that takes no model speaks of the consumer's own."""
    method = getattr(consumer, hook)
    if takes(method, 1):
        return method(model)
    return method() if is_own else None


def named_columns(table: ModelTable, option: str, names: Any, problems: list[str]) -> list[str]:
    """Keys of columns that a hook or setting names."""
    if isinstance(names, str) or not isinstance(names, Sequence):
        problems.append(f"{option} must be a list of names of columns, not {type(names).__name__}")
        return []
    unknown = [name for name in names if name not in table.names]
    if unknown:
        what = ", ".join(map(repr, unknown))
        problems.append(f"{option} names {what}, and table {table.table.fullname!r} has no such column")
    return [table.names[name] for name in names if name in table.names]
