"""What the store holds beside bytes: directories, and what goes when something is removed.

Lives here: keeping a directory's nodes, walking a path over them, removing. Everything blocks.
"""

from __future__ import annotations

from inference.models.checking import not_here
from inference.models.cid import Cid, cid_of_block, parse_cid
from inference.models.dagpb import parse_block
from inference.models.directory import DirectoryDag
from inference.models.disk import Disk
from inference.models.folders import Folders
from inference.models.index import Index
from inference.models.locks import locked
from inference.models.paths import read_with, resolve_path
from inference.models.views import drop_dead_views
from market.errors import BlockInvalid


class Holdings:
    def __init__(self, folders: Folders, index: Index, disk: Disk) -> None:
        self._folders = folders
        self._index = index
        self._disk = disk

    def add_directory(self, dag: DirectoryDag, public: bool) -> None:
        blocks = list(dag.nodes)
        links = [(cid, link.cid) for cid, block in blocks for link in parse_block(block).links]
        for cid, block in blocks:
            if cid_of_block(cid.codec, block) != cid:
                raise BlockInvalid(f"a directory's block of {len(block)} bytes does not hash to {cid}.")
        self._index.save_blocks(dag.root, blocks, links, public=public)

    def resolve(self, root: str, path: str, public_only: bool) -> str:
        if public_only and not self._index.is_public(root):
            raise not_here(root)

        def block(cid: Cid) -> bytes:
            data = self._index.inline(cid, public_only=public_only)
            if data is None:
                raise not_here(str(cid))
            return data

        return str(read_with(resolve_path(parse_cid(root), path), block))

    def remove(self, root: str, below: bool, keep: frozenset[str]) -> None:
        with locked(self._folders.lock):
            roots = [one for one in self._index.files_below(root) if one != root] if below else []
            self._index.drop_blocks(root)
            for one in roots:
                row = self._index.file(one)
                if one not in keep and row is not None and not row.public and not self._index.is_linked(one):
                    self.forget(one)
            self.forget(root)
            drop_dead_views(self._folders)

    def forget(self, root: str) -> None:
        # The file goes first: a row without a file is nothing, a file without a row would be taken in again.
        self._disk.remove(self._folders.path_of(root))
        self._index.drop_file(root)
