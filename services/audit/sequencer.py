"""Gives entries their places: one transaction is one step of the tree, signed.

Two replicas can never fork the tree. The head row's lock lets one writer at a time read the tree, extend it and
commit; each step starts from the head as it is under that lock, never from memory alone. What memory is for: a store
that went back behind what this process saw committed (a failover that lost transactions) is refused, never extended,
or the same key would sign two trees of one size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prometheus_client import Counter, Gauge
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from services.audit.entry import END_KINDS, Draft
from services.audit.errors import LogCorrupt, WrongLog
from services.audit.store import (
    Head,
    create_head,
    find_keys,
    find_leases,
    insert_entries,
    read_head,
    swap_head,
)
from services.audit.tiles import Tiles
from shared.errors import DataLoss
from shared.records.store import Records
from shared.transparency.checkpoint import Checkpoint, sign_checkpoint, verify_checkpoint
from shared.transparency.merkle import EMPTY_ROOT, Range
from shared.transparency.note import Signer
from shared.transparency.tiles import TileReader
from shared.transparency.tree import Tree

LOG_ENTRIES = Gauge("bastide_log_entries", "Size of the tree under the newest signed checkpoint.")
APPENDED = Counter("bastide_log_appended_total", "Entries that this process put in the log.", ["kind"])


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A group's indices, one for each draft; None where the lease that a draft closes was already ended."""

    indices: tuple[int | None, ...]


@dataclass(frozen=True, kw_only=True)
class Conflict:
    """The group uses a record id for something other than what the log has under it."""

    record_id: str


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a batch came to: an outcome for each group, the tree after it, and what is new in it by index."""

    outcomes: tuple[Placed | Conflict, ...]
    head: Head
    new: Mapping[int, Draft]
    reader: TileReader


class Sequencer:
    """Appends batches. Callers MUST run one `commit` at a time in a process."""

    def __init__(self, records: Records, signer: Signer, tiles: Tiles) -> None:
        """Sequence into `records`; the signer's name is the log's origin."""
        self._records = records
        self._signer = signer
        self._tiles = tiles
        self._tree: Tree | None = None
        self._seen: Head | None = None

    async def open(self) -> Head:
        """Begin the log if it has not begun, check that it is ours and whole, and return its head.

        Raises `WrongLog`, `LogCorrupt` or `RecordsUnavailable`.
        """
        async with self._records.read() as connection:
            head = await read_head(connection)
        if head is None:
            head = self._sign(0, EMPTY_ROOT)
            try:
                async with self._records.write() as connection:
                    await create_head(connection, head)
            except IntegrityError:
                return await self.open()
        try:
            checkpoint = verify_checkpoint(head.checkpoint, self._signer.verifier)
        except DataLoss:
            raise WrongLog("the stored log was signed by another name or key") from None
        if (checkpoint.size, checkpoint.root) != (head.size, head.root):
            raise LogCorrupt("the stored head is not the one that was signed")
        async with self._records.read() as connection:
            await self._tiles.resume(connection, head.size, head.root)
        self._seen = head
        LOG_ENTRIES.set(head.size)
        return head

    async def commit(self, groups: Sequence[Sequence[Draft]]) -> Step:
        """Put each group in the log whole and in order, or refuse it whole; durable when this returns.

        Raises `RecordsUnavailable`, after which the batch may or may not be in the log, or `LogCorrupt`.
        """
        tree, self._tree = self._tree, None
        async with self._records.write() as connection:
            head = await read_head(connection, lock=True)
            if head is None:
                raise LogCorrupt("the log lost its head")
            await self._check_seen(connection, head)
            if tree is None or (tree.size, tree.root()) != (head.size, head.root):
                tree = await self._tiles.resume(connection, head.size, head.root)
            known = await find_keys(connection, {draft.key for group in groups for draft in group})
            closing = {draft.closes for group in groups for draft in group if draft.closes is not None}
            open_leases = await find_leases(connection, closing)
            placing = _Placing(known, open_leases, tree.size)
            outcomes = tuple(placing.place(group) for group in groups)
            for _, draft in placing.new:
                tree.append(draft.leaf_hash)
            reader = tree.reader()
            new = head
            if placing.new:
                new = self._sign(tree.size, tree.root())
                await insert_entries(connection, placing.new)
                await self._tiles.store(connection, tree.take())
                await swap_head(connection, head, new)
        self._tree, self._seen = tree, new
        LOG_ENTRIES.set(new.size)
        for _, draft in placing.new:
            APPENDED.labels(draft.entry.kind).inc()
        return Step(outcomes=outcomes, head=new, new=dict(placing.new), reader=reader)

    async def _check_seen(self, connection: AsyncConnection, head: Head) -> None:
        seen = self._seen
        if seen is None or seen == head:
            return
        if seen.size >= head.size:
            raise LogCorrupt("the store went back behind a tree that was signed")
        # Not from the cache, which may hold tiles of the tree that the store no longer has.
        if await Tiles(cached=0).read(connection, [Range(0, seen.size)]) != [seen.root]:
            raise LogCorrupt("the stored tree does not extend one that was signed")

    def _sign(self, size: int, root: bytes) -> Head:
        checkpoint = Checkpoint(origin=self._signer.name, size=size, root=root)
        return Head(size=size, root=root, checkpoint=sign_checkpoint(checkpoint, self._signer))


class _Placing:
    """Decides, group by group, what is new, what is known and what conflicts."""

    def __init__(
        self, known: dict[tuple[str, str], tuple[int, bytes]], leases: dict[int, tuple[str, str]], size: int
    ) -> None:
        self._known = known
        self._leases = leases
        self._ended: set[tuple[str, str]] = set()
        self._size = size
        self.new: list[tuple[int, Draft]] = []

    def place(self, group: Sequence[Draft]) -> Placed | Conflict:
        indices: list[int | None] = []
        added: dict[tuple[str, str], tuple[int, bytes]] = {}
        drafts: list[tuple[int, Draft]] = []
        for draft in group:
            seen = added.get(draft.key) or self._known.get(draft.key)
            if seen is not None and seen[1] != draft.digest:
                return Conflict(record_id=draft.entry.record_id)
            if seen is not None:
                indices.append(seen[0])
            elif draft.closes is not None and self._leases.get(draft.closes) in (None, *self._ended):
                indices.append(None)
            else:
                index = self._size + len(drafts)
                added[draft.key] = (index, draft.digest)
                drafts.append((index, draft))
                indices.append(index)
        self._known |= added
        self.new += drafts
        self._size += len(drafts)
        self._ended |= {
            (draft.entry.writer, draft.entry.call_id) for _, draft in drafts if draft.entry.kind in END_KINDS
        }
        return Placed(indices=tuple(indices))
