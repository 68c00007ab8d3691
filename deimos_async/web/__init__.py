"""What an application shows by HTTP: an ASGI application of its own, without any framework.

What belongs here: paths, status codes, bodies, and the server of `run --web`. What does not: deciding what is healthy
(see `health`).
"""
