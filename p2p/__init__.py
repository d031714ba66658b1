"""The mesh: peers find each other, exchange offers and hold conversations, over libp2p.

`p2p.network` is the asyncio face that the node uses. Below `p2p.bridge` everything is trio.
"""
