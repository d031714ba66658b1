"""Content for others: the public listener, its limits and tickets, and the shelf that mesh peers read from."""
