"""What was run, and whether it can be believed: transcripts, receipts, and files that anybody can check offline.

Knows hashes, signatures and counts; never a network, an engine or a clock.
"""
