"""Schemas: compiled once, then plain functions from payloads to bytes and back; and where schemas come from.

What belongs here: codecs (pure), the wire format, files and registry. What does not: topics' options (see `topics`),
when a schema is needed (see `producing`, `consuming`).
"""
