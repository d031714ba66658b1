"""Engines for work that is no token stream: a supervised child process each, and what runs inside it."""
