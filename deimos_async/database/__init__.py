"""The application's database through async SQLAlchemy: engines, sessions, and what belongs to a transaction.

What belongs here: whatever must know SQLAlchemy. What does not: what is written (the jobs decide).
"""
