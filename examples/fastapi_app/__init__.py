"""A web application that takes orders, and the consumer that works on them, in one process."""
