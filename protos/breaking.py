"""`buf breaking` of the working tree against main or, on main itself, against the commit before.

`BREAKING_BASE` names another revision to compare with. `BREAKING_BASE=none` compares with nothing: for an archive,
which has no history. Without a base the check fails, for it would otherwise pass whatever changed.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
BUF = Path(sys.executable).parent / "buf"
MAIN = ("origin/main", "main")


class NoBaseError(Exception):
    """There is nothing to compare with, and nobody said that there need not be."""


def git(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["git", "-C", str(HERE.parent), *arguments], capture_output=True, check=False)


def exists(revision: str) -> bool:
    return git("rev-parse", "--quiet", "--verify", f"{revision}^{{commit}}").returncode == 0


def base() -> str | None:
    """Return the revision to compare with, None where it is known that there is none. Raises NoBaseError."""
    wanted = os.environ.get("BREAKING_BASE", "")
    if wanted == "none":
        return None
    if wanted:
        if not exists(wanted):
            raise NoBaseError(f"BREAKING_BASE: there is no revision {wanted}")
        return wanted
    if not (HERE.parent / ".git").exists() or not exists("HEAD"):
        raise NoBaseError("there is no history to compare with")
    main = next((name for name in MAIN if exists(name)), None)
    if main is None:
        raise NoBaseError("main is not here; `git fetch origin main:refs/remotes/origin/main` brings it")
    if git("merge-base", "--is-ancestor", "HEAD", main).returncode != 0:
        return main
    if exists("HEAD~1"):
        return "HEAD~1"
    if git("rev-parse", "--is-shallow-repository").stdout.strip() != b"false":
        raise NoBaseError("the commit before is not here; `git fetch --deepen=1` brings it")
    return None


def main() -> int:
    try:
        found = base()
    except NoBaseError as error:
        sys.stderr.write(
            f"breaking changes cannot be found: {error}. BREAKING_BASE=none goes without the comparison.\n"
        )
        return 1
    if found is None or git("ls-tree", f"{found}:protos").returncode != 0:
        sys.stdout.write("no earlier contracts to compare with\n")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        archive = git("archive", f"{found}:protos")
        archive.check_returncode()
        subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
        sys.stdout.write(f"comparing the contracts with {found}\n")
        sys.stdout.flush()
        return subprocess.run([str(BUF), "breaking", "--against", folder], cwd=HERE, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
