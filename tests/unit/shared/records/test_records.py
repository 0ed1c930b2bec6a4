"""What every service relies on in its record store, on both databases."""

from __future__ import annotations

import asyncio
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from shared.records.errors import DatabaseInUse, RecordsMisconfigured, RecordsUnavailable, SchemaMismatch
from shared.records.migrations import check_schema, migrate
from shared.records.store import Records
from tests.stores import Stores

REVISION = """
from alembic import op
import sqlalchemy as sa
revision = "{this}"
down_revision = {before!r}
branch_labels = None
depends_on = None
def upgrade():
    op.create_table("t{this}", sa.Column("id", sa.Integer, primary_key=True))
    {more}
"""


def scripts(path: Path, count: int, *, broken: bool = False) -> Path:
    (path / "versions").mkdir(parents=True)
    (path / "env.py").write_text(
        "from sqlalchemy import MetaData\nfrom shared.records.migrations import run_environment\n"
        "run_environment(MetaData())\n"
    )
    for n in range(1, count + 1):
        more = "op.execute('this is not SQL')" if broken and n == count else ""
        before = f"{n - 1:04}" if n > 1 else None
        (path / "versions" / f"{n:04}.py").write_text(REVISION.format(this=f"{n:04}", before=before, more=more))
    return path


async def make(records: Records) -> None:
    async with records.write() as connection:
        await connection.execute(text("CREATE TABLE t (id INTEGER PRIMARY KEY)"))


async def count(records: Records) -> int:
    async with records.read() as connection:
        return int((await connection.execute(text("SELECT count(*) FROM t"))).scalar_one())


async def test_a_block_that_ends_is_committed_and_one_that_raises_is_not(database_url: str) -> None:
    async with Records(database_url) as records:
        await make(records)
        async with records.write() as connection:
            await connection.execute(text("INSERT INTO t VALUES (1)"))

        async def fail() -> None:
            async with records.write() as connection:
                await connection.execute(text("INSERT INTO t VALUES (2)"))
                raise KeyError

        with pytest.raises(KeyError):
            await fail()
        with pytest.raises(IntegrityError):
            async with records.write() as connection:
                await connection.execute(text("INSERT INTO t VALUES (1)"))
    async with Records(database_url) as records:
        assert await count(records) == 1


async def test_a_cancelled_transaction_leaves_nothing_and_the_store_usable(database_url: str) -> None:
    async with Records(database_url, pool_size=1) as records:
        await make(records)
        entered = asyncio.Event()

        async def write() -> None:
            async with records.write() as connection:
                await connection.execute(text("INSERT INTO t VALUES (1)"))
                entered.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(write())
        await entered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await count(records) == 0


async def test_a_transaction_past_its_deadline_is_unavailable(database_url: str) -> None:
    async with Records(database_url, deadline=0.05) as records:
        with pytest.raises(RecordsUnavailable) as caught:
            async with records.read():
                await asyncio.Event().wait()
    assert database_url not in caught.value.message


async def test_an_exhausted_pool_is_unavailable_not_a_hang(database_url: str) -> None:
    async with Records(database_url, deadline=0.2, pool_size=1) as records:
        with pytest.raises(RecordsUnavailable):
            async with records.read(), records.read():
                pass


async def test_errors_of_the_database_become_unavailable(database_url: str) -> None:
    async with Records(database_url) as records:
        with pytest.raises(RecordsUnavailable):
            async with records.read() as connection:
                await connection.execute(text("SELECT * FROM missing"))


async def test_a_server_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    async with Records(f"postgresql://nobody@/nothing?host={tmp_path}", deadline=2) as records:
        with pytest.raises(RecordsUnavailable):
            async with records.read():
                pass


async def test_a_database_that_is_not_there_is_unavailable(postgresql_stores: Stores) -> None:
    url = postgresql_stores.new().replace("/test_", "/absent_")
    async with Records(url) as records:
        with pytest.raises(RecordsUnavailable):
            async with records.read():
                pass


async def test_sqlite_is_durable_private_and_checks_references(sqlite_stores: Stores) -> None:
    url = sqlite_stores.new()
    async with Records(url) as records:
        await make(records)
        async with records.read() as connection:
            settings = [
                (await connection.exec_driver_sql(f"PRAGMA {name}")).scalar_one()
                for name in ("journal_mode", "synchronous", "foreign_keys", "secure_delete", "busy_timeout")
            ]
        assert settings == ["wal", 2, 1, 1, 10_000]
        for suffix in ("", "-wal"):
            mode = Path(url.removeprefix("sqlite:///") + suffix).stat().st_mode
            assert stat.S_IMODE(mode) == 0o600


async def test_scrubbed_bytes_are_gone_from_sqlites_files(sqlite_stores: Stores) -> None:
    url = sqlite_stores.new()
    path = Path(url.removeprefix("sqlite:///"))
    async with Records(url) as records:
        async with records.write() as connection:
            await connection.execute(text("CREATE TABLE s (v BLOB)"))
            await connection.execute(text("INSERT INTO s VALUES ('a secret to be forgotten')"))
        async with records.write() as connection:
            await connection.execute(text("DELETE FROM s"))
        await records.scrub()
        for file in path.parent.glob(f"{path.name}*"):
            assert b"a secret to be forgotten" not in file.read_bytes()


async def test_postgresql_commits_are_flushed(postgresql_stores: Stores) -> None:
    async with Records(postgresql_stores.new()) as records:
        await records.scrub()
        async with records.read() as connection:
            assert (await connection.execute(text("SHOW synchronous_commit"))).scalar_one() == "on"


async def test_a_second_process_on_an_exclusive_sqlite_database_is_refused(sqlite_stores: Stores) -> None:
    url = sqlite_stores.new()
    program = (
        "import sys; from shared.records.store import Records; from shared.records.errors import DatabaseInUse\n"
        "try: Records(sys.argv[1], exclusive=True)\n"
        "except DatabaseInUse: sys.exit(7)\n"
    )
    command = [sys.executable, "-c", program, url]
    async with Records(url, exclusive=True):
        with pytest.raises(DatabaseInUse):
            Records(url, exclusive=True)
        assert subprocess.run(command, check=False).returncode == 7
        async with Records(url):
            pass
    assert subprocess.run(command, check=False).returncode == 0


async def test_replicas_share_postgresql(postgresql_stores: Stores) -> None:
    url = postgresql_stores.new()
    async with Records(url, exclusive=True) as one, Records(url, exclusive=True) as two:
        await make(one)
        assert await count(two) == 0


@pytest.mark.parametrize(
    "url",
    [
        "",
        "nonsense",
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:///file:x?mode=ro",
        "sqlite:////nowhere/at/all.db",
        "mysql://u:hunter2@h/d",
        "postgresql://u:hunter2@db.example/d?sslmode=disable",
        "postgresql://u:hunter2@db.example/d?sslrootcert=/nowhere",
    ],
)
def test_a_url_that_names_no_safe_database_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(RecordsMisconfigured) as caught:
        Records(url)
    assert "hunter2" not in str(caught.value)


def test_migration_is_explicit_repeatable_and_all_or_nothing(stores: Stores, tmp_path: Path) -> None:
    url = stores.new()
    good, bad = scripts(tmp_path / "good", 2), scripts(tmp_path / "bad", 3, broken=True)
    assert migrate(url, good) == "0002"
    assert migrate(url, good) == "0002"
    with pytest.raises(RecordsUnavailable):
        migrate(url, bad)

    async def tables() -> list[bool]:
        async with Records(url) as records:
            found = []
            for name in ("t0001", "t0002", "t0003"):
                try:
                    async with records.read() as connection:
                        await connection.execute(text(f"SELECT * FROM {name}"))
                    found.append(True)
                except RecordsUnavailable:
                    found.append(False)
            return found

    assert asyncio.run(tables()) == [True, True, False]


def test_a_server_accepts_its_schema_and_the_one_before(stores: Stores, tmp_path: Path) -> None:
    path = scripts(tmp_path / "scripts", 3)
    older = scripts(tmp_path / "older", 2)

    async def check(url: str, location: Path) -> None:
        async with Records(url) as records:
            await check_schema(records, location, "audit")

    url = stores.new()
    with pytest.raises(SchemaMismatch, match=r"schema none, this server needs 0003: run `python -m services.audit"):
        asyncio.run(check(url, path))
    migrate(url, path, "0001")
    with pytest.raises(SchemaMismatch, match="schema 0001, this server needs 0003"):
        asyncio.run(check(url, path))
    migrate(url, path, "0002")
    asyncio.run(check(url, path))
    migrate(url, path)
    asyncio.run(check(url, path))
    with pytest.raises(SchemaMismatch, match="run a newer build"):
        asyncio.run(check(url, older))


async def test_a_writer_that_is_cancelled_at_any_moment_leaves_all_or_nothing(database_url: str) -> None:
    async with Records(database_url) as records:
        async with records.write() as connection:
            await connection.execute(text("CREATE TABLE pairs (number INTEGER)"))

        async def pair(number: int) -> None:
            async with records.write() as connection:
                for _ in range(2):
                    await connection.execute(text("INSERT INTO pairs VALUES (:number)"), {"number": number})

        for number in range(60):
            task = asyncio.create_task(pair(number))
            await asyncio.sleep(number / 60 * 0.01)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        async with records.read() as connection:
            counts = await connection.execute(text("SELECT COUNT(*) FROM pairs GROUP BY number"))
            assert {row[0] for row in counts} <= {2}
        await pair(100)
