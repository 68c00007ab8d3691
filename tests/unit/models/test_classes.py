"""The model that a class names in its brackets."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import pytest

from deimos_async.models.classes import model_of
from deimos_async.models.producer import ModelProducer


class Model:
    pass


def derived(*bases: Any) -> type:
    return types.new_class("Derived", bases, exec_body=lambda body: body.update(__module__=__name__))


def test_model_is_that_of_the_nearest_base() -> None:
    base = derived(ModelProducer[Model])
    assert model_of(base, ModelProducer) is Model
    assert model_of(derived(base), ModelProducer) is Model
    assert model_of(derived(base, ModelProducer[int]), ModelProducer) is int


def test_class_without_brackets_or_with_any_has_none() -> None:
    assert model_of(derived(ModelProducer), ModelProducer) is None
    assert model_of(derived(ModelProducer[Any]), ModelProducer) is None


def test_name_is_found_in_the_module_of_the_class() -> None:
    assert model_of(derived(ModelProducer["Model"]), ModelProducer) is Model


def test_name_with_dots_is_imported_when_it_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    named = derived(ModelProducer["models_of_the_shop.Widget"])  # type: ignore[name-defined]
    assert model_of(named, ModelProducer) == "models_of_the_shop.Widget"
    (tmp_path / "models_of_the_shop.py").write_text("class Widget: pass\n")
    assert model_of(named, ModelProducer).__name__ == "Widget"
