"""`buf breaking` of the working tree against the newest commit on main, where there is one with contracts."""

import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
BUF = Path(sys.executable).parent / "buf"


def git(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["git", "-C", str(HERE.parent), *arguments], capture_output=True, check=False)


def main() -> int:
    names = ("origin/main", "main")
    found = next((name for name in names if git("rev-parse", "--verify", name).returncode == 0), None)
    if found is None or git("ls-tree", f"{found}:protos").returncode != 0:
        sys.stdout.write("no main with contracts to compare with\n")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        archive = git("archive", f"{found}:protos")
        subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
        return subprocess.run([str(BUF), "breaking", "--against", folder], cwd=HERE, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
