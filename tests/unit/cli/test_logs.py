"""The published log verified offline."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.transparency.note import Signer
from tests.unit.cli.conftest import Bastide, PublishedLog, document


def test_a_published_log_verifies(bastide: Bastide, log: PublishedLog) -> None:
    result = bastide("audit", "verify", log.directory, "--key", log.key)
    assert result.exit_code == 0, result.output
    assert "The log verifies: 5 entries" in result.stdout


def test_a_log_is_held_against_a_checkpoint_that_was_kept(bastide: Bastide, log: PublishedLog, tmp_path: Path) -> None:
    assert "--checkpoint FILE" in bastide("audit", "verify", log.directory, "--key", log.key).stdout
    kept = tmp_path / "kept"
    kept.write_bytes((log.directory / "checkpoint").read_bytes())
    arguments = ("audit", "verify", log.directory, "--key", log.key, "--checkpoint", kept)
    assert "first 5 entries are those of the checkpoint" in bastide(*arguments).stdout
    assert document(bastide(*arguments, "--json"))["extends"] == 5
    kept.write_bytes(kept.read_bytes().replace(b"\n5\n", b"\n6\n"))
    refused = bastide(*arguments)
    assert refused.exit_code == 2
    assert "NOT verify" not in refused.stderr


@pytest.mark.parametrize("name", ["tile/entries/000.p/5", "tile/0/000.p/5", "checkpoint"])
def test_a_tampered_copy_is_refused_naming_the_file(bastide: Bastide, log: PublishedLog, name: str) -> None:
    path = log.directory / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    result = bastide("audit", "verify", log.directory, "--key", log.key, "--json")
    assert result.exit_code == 1
    assert "does NOT verify" in result.stderr
    error = document(result)["error"]
    assert isinstance(error, dict)
    # An altered entry shows in the tile of its hash, the first file that disagrees.
    assert ("tile/0/000.p/5" if name.startswith("tile") else name) in error["message"]


def test_a_missing_file_is_named(bastide: Bastide, log: PublishedLog) -> None:
    (log.directory / "tile/entries/000.p/5").unlink()
    result = bastide("audit", "verify", log.directory, "--key", log.key)
    assert result.exit_code == 1
    # The panel folds where it must.
    assert "tile/entries/000.p/5:missing" in "".join(result.stderr.replace("│", "").split())


def test_the_key_of_another_log_is_refused(bastide: Bastide, log: PublishedLog) -> None:
    log.key.write_text(Signer.generate("bastide.local/audit").verifier.vkey)
    assert bastide("audit", "verify", log.directory, "--key", log.key).exit_code == 1


def test_a_key_that_is_missing_is_named(bastide: Bastide, log: PublishedLog, tmp_path: Path) -> None:
    result = bastide("audit", "verify", log.directory, "--key", tmp_path / "nowhere")
    assert result.exit_code == 1
    assert "nowhere" in result.stderr


def test_a_wrong_folder_or_key_file_is_no_broken_log(bastide: Bastide, log: PublishedLog, tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("not a key")
    for arguments in ((tmp_path / "empty", "--key", log.key), (log.directory, "--key", text)):
        refused = bastide("audit", "verify", *arguments)
        assert refused.exit_code == 2, refused.stderr
        assert "NOT verify" not in refused.stderr
