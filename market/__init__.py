"""The words, the rules and the two stories (buying, selling) of the market.

Pure: no I/O, no clock, no environment. Whatever touches the world comes in through `market.ports`.
"""
