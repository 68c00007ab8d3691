"""What the application tells about itself: metrics and traces, each a port (`protocol`) with one module for each provider.

What belongs here: translating our few calls into a provider's. What does not: deciding what is worth telling.
"""
