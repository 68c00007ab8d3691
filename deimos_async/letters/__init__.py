"""Dead letters after the fact: finding them, sending them back, deleting them. The application need not run.

What belongs here: operations on dead-letter topics of an application. How a message becomes a dead letter is
`consuming/dead_letters.py`; arguments and output are in `cli/dead_letters.py`.
"""
