"""What the application tells about itself: metrics and traces, a port each (`protocol`), a module for each provider.

What belongs here: translating our few calls into a provider's. What does not: deciding what is worth telling.
"""
