"""Text that others have written, made fit for one line of a log, a header or a terminal.

Names, keys, headers and the texts of errors may hold what a message said: an escape sequence would move the cursor of
whoever reads it, a line break would forge a line, and signs that turn the direction of writing would hide what is
there.
"""

from __future__ import annotations

__all__ = ["class_path", "described", "escaped", "escaped_lines"]

_TEXT_LIMIT = 1000


def escaped(text: str) -> str:
    r"""The text with everything that is not printable as a backslash sequence; the space is the only blank.

    That is what `str.isprintable` refuses: control characters and line breaks (`\x1b`, `\n`), characters of format,
    those for the direction of writing among them (`\u202e`), and lone surrogates (`\ud800`). So the result can be
    encoded in UTF-8, always. A backslash stays as it is: the result is for reading and not for getting the text back.
    """
    text = _exact(text)
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def escaped_lines(text: str) -> str:
    """The same, for text of several lines: its line feeds stay."""
    return "\n".join(map(escaped, _exact(text).split("\n")))


def described(error: BaseException, *, limit: int = _TEXT_LIMIT) -> str:
    """What an error says, in one printable line of at most `limit` characters; never raises.

    Blanks and line breaks become one space each; see `escaped` for the rest. An error whose `__str__` fails says that
    instead. The name of its class is not in the text.
    """
    try:
        text = _exact(str(error))
    except Exception as failed:
        return f"(no text: its __str__ raised {type(failed).__name__})"
    # Sequences make the text longer: cut before, so that a huge one costs little, and after.
    return escaped(" ".join(text[: 8 * limit].split())[:limit])[:limit]


def class_path(error: BaseException) -> str:
    """Full name of an error's class, printable; one of ours by the name under which it can be imported."""
    cls = type(error)
    module = cls.__module__ if isinstance(cls.__module__, str) else "?"
    if module.startswith("deimos_async."):
        module = "deimos_async"
    return escaped(f"{module}.{cls.__qualname__}")


def _exact(text: str) -> str:
    # A subclass of str, which `str()` gives back as it is, may answer as it likes.
    return text if type(text) is str else str.__str__(text)
