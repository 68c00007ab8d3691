"""The face of the package: every name is there, is found, and is written down."""

from __future__ import annotations

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest

import deimos_async
from deimos_async import errors

ROOT = Path(deimos_async.__file__).parents[1]


def names_for_type_checkers() -> dict[str, str]:
    """Names that are imported under TYPE_CHECKING, with the module they come from."""
    tree = ast.parse(Path(deimos_async.__file__).read_text("utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    return {
        alias.name: node.module or "" for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }


def test_names_are_sorted_and_none_is_listed_twice() -> None:
    assert list(deimos_async.__all__) == sorted(set(deimos_async.__all__))


@pytest.mark.parametrize("name", deimos_async.__all__)
def test_name_is_found_where_type_checkers_find_it(name: str) -> None:
    found = getattr(deimos_async, name)
    assert found is getattr(import_module(names_for_type_checkers()[name]), name)
    assert found.__name__ == name
    assert found.__doc__, f"{name} says nothing about itself"


def test_type_checkers_see_the_public_names_and_no_others() -> None:
    assert names_for_type_checkers().keys() == set(deimos_async.__all__)


def test_every_error_is_public() -> None:
    assert set(errors.__all__) <= set(deimos_async.__all__)


def test_dir_lists_the_public_names() -> None:
    assert set(deimos_async.__all__) <= set(dir(deimos_async))


def test_unknown_name_is_an_attribute_error_that_names_it() -> None:
    with pytest.raises(AttributeError, match="module 'deimos_async' has no attribute 'Nothing'"):
        deimos_async.Nothing  # noqa: B018
    assert not hasattr(deimos_async, "Nothing")


def test_reference_page_lists_every_public_name() -> None:
    page = (ROOT / "docs" / "reference.md").read_text("utf-8")
    named = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`\n]+)`", page))))
    missing = [name for name in deimos_async.__all__ if name not in named]
    assert not missing, f"docs/reference.md does not name {', '.join(missing)}"
