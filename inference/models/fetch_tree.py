"""Pulling a folder: the directories' own blocks first, each hashed, then every file below as any other file.

Lives here: what a folder may cost before its first file is fetched, and one progress for all of it. Knows sources by
their port only.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from inference.models import dagpb
from inference.models.cid import BLOCK_LIMIT_BYTES, DAG_PB, Cid, parse_cid
from inference.models.directory import DirectoryDag, is_directory
from inference.models.fetch import PATIENCE, fetch_file, forgive, new_crowd
from inference.models.paths import bring_with, list_folder
from inference.models.progress import OnProgress, Progress, quiet
from inference.models.standing import Blame, Patience
from inference.models.store import Store
from inference.models.walk import parse_node
from market.errors import BlockInvalid, ContentUnavailable
from market.ports import ContentSource
from market.values import value


@value
class TreeLimits:
    """What a root of somebody else's may make us fetch. A model in shards has some hundred files; directories nest no
    deeper than a path may (32)."""

    files: int = 10_000
    size_bytes: int = 1 << 42
    directory_bytes: int = 64 * 1024 * 1024


TREE_LIMITS = TreeLimits()


async def fetch_tree(
    store: Store,
    root: str,
    sources: Sequence[ContentSource],
    *,
    public: bool = False,
    progress: OnProgress = quiet,
    blame: Blame = forgive,
    patience: Patience = PATIENCE,
    limits: TreeLimits = TREE_LIMITS,
) -> Mapping[str, str]:
    """Bring the directory `root` with all files below it into the store; relative path -> root of the file.

    A root that is a file itself is fetched as the only one, under its CID for want of a name.
    Whoever lied about one file is not asked for the next. What an earlier pull brought is kept.
    Raises BlockInvalid for a folder that is unsound or over `limits`, before any file is fetched; else as `fetch_file`.
    """
    liars: set[str] = set()

    def remember(source: str, why: str) -> None:
        liars.add(source)
        blame(source, why)

    top, listing = parse_cid(root), _Listing(limits)
    crowd = new_crowd(root, sources, patience, remember)

    async def block(cid: Cid) -> bytes:
        try:
            data = await store.read_block(str(cid))
        except ContentUnavailable:
            data = await crowd.block(cid)
        listing.note(cid, data)
        return data

    if top.codec != DAG_PB or not is_directory(await block(top)):
        files = {root: top}
    else:
        files = await bring_with(list_folder(top), block)
        listing.check(files.values())
        dag = DirectoryDag(root=top, nodes=list(listing.nodes.items()), total_bytes=0)
        await store.add_directory(dag)  # public only when all of it is here
    await _make_room(store, files.values(), listing.sizes)
    heard = _Sum(root, progress, listing.sizes)
    for cid in dict.fromkeys(files.values()):
        honest = [source for source in sources if source.name not in liars]
        await fetch_file(
            store, str(cid), honest, public=public, progress=heard.of(cid), blame=remember, patience=patience
        )
    if public:
        await store.set_public(root)
    return {path: str(cid) for path, cid in files.items()}


async def _make_room(store: Store, files: Collection[Cid], sizes: Mapping[Cid, int]) -> None:
    """For all of it at once: or a file that has just come would have to go for the next."""
    here = [str(cid) for cid in files if store.has(str(cid))]
    await store.touch(here)
    await store.make_room(sum(sizes.get(cid, 0) for cid in set(files) if str(cid) not in here))


class _Listing:
    """What was seen while a folder was listed: the directories' blocks, and the size of each file that has one."""

    def __init__(self, limits: TreeLimits) -> None:
        self.nodes: dict[Cid, bytes] = {}
        self.sizes: dict[Cid, int] = {}
        self._limits = limits
        self._bytes = 0

    def note(self, cid: Cid, block: bytes) -> None:
        if cid in self.nodes or cid in self.sizes:
            return
        if dagpb.kind_of(block) in (dagpb.DIRECTORY, dagpb.SHARD):
            self.nodes[cid] = block
            self._bytes += len(block)
            if self._bytes > self._limits.directory_bytes:
                raise BlockInvalid(f"a folder with over {self._limits.directory_bytes} bytes of names is refused.")
        else:
            self.sizes[cid] = parse_node(block).size_bytes

    def check(self, files: Collection[Cid]) -> None:
        """A file of one raw block has its size nowhere; it is at most 2 MiB."""
        distinct = set(files)
        if len(distinct) > self._limits.files:
            raise BlockInvalid(f"a folder of {len(distinct)} files is over the limit of {self._limits.files}.")
        total = sum(self.sizes[cid] if cid.codec == DAG_PB else BLOCK_LIMIT_BYTES for cid in distinct)
        if total > self._limits.size_bytes:
            raise BlockInvalid(f"a folder of {total} bytes is over the limit of {self._limits.size_bytes}.")


class _Sum:
    """The progress of file after file, as that of one folder."""

    def __init__(self, root: str, tell: OnProgress, sizes: Mapping[Cid, int]) -> None:
        self._root = root
        self._tell = tell
        self._sizes = dict(sizes)
        self._done = 0

    def of(self, cid: Cid) -> OnProgress:
        before = self._done

        def told(seen: Progress) -> None:
            self._sizes[cid] = seen.total_bytes
            self._done = before + seen.done_bytes
            total = sum(self._sizes.values())
            rate = seen.rate_bytes_per_s
            left_s = (total - self._done) / rate if rate >= 1 else None
            self._tell(replace(seen, what=self._root, done_bytes=self._done, total_bytes=total, eta_s=left_s))

        return told
