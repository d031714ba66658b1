"""Work that nobody waits for: files of requests, worked off line by line, across restarts."""
