"""Pollers: rows of a table that have changed, read now and then and sent by model producers.

What belongs here: when and what is read, what becomes of it, and who does it. The statements are in
`database/polling`; payloads and messages are the producers' own.
"""
