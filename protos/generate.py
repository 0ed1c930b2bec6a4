"""Generate the Python stubs under `gen/` from the contracts. Run by `make protos` in its own environment.

Limits are declared with protovalidate's options. The options stay in the generated descriptors, where the servers'
validator reads them, but the import of `buf/validate/validate.proto` is dropped: callers' stubs then depend on
protobuf and grpcio alone, and cannot clash with another copy of that file in a caller's process.
"""

import shutil
import sys
import tempfile
from pathlib import Path

from google.protobuf import descriptor_pb2
from grpc_tools import _proto, protoc

HERE = Path(__file__).parent
OPTIONS = "buf/validate/validate.proto"


def run(*arguments: str) -> None:
    if protoc.main(["protoc", *arguments]) != 0:
        sys.exit("protoc failed")


def main() -> None:
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "gen"
    sources = sorted(str(path.relative_to(HERE)) for path in (HERE / "bastide").rglob("*.proto"))
    with tempfile.TemporaryDirectory() as work:
        image = Path(work) / "image.binpb"
        well_known = Path(next(iter(_proto.__path__)))
        run(
            f"-I{HERE}", f"-I{well_known}", "--include_imports", "--include_source_info",
            f"--descriptor_set_out={image}", *sources,
        )  # fmt: skip
        files = descriptor_pb2.FileDescriptorSet.FromString(image.read_bytes())
        stripped = descriptor_pb2.FileDescriptorSet()
        for file in files.file:
            if file.name == OPTIONS:
                continue
            kept = [name for name in file.dependency if name != OPTIONS]
            del file.dependency[:]
            file.dependency.extend(kept)
            stripped.file.append(file)
        image.write_bytes(stripped.SerializeToString())
        shutil.rmtree(target / "bastide", ignore_errors=True)
        target.mkdir(parents=True, exist_ok=True)
        run(
            f"--descriptor_set_in={image}", f"--python_out={target}", f"--grpc_python_out={target}",
            f"--mypy_out={target}", f"--mypy_grpc_out={target}", *sources,
        )  # fmt: skip
    packages = {path.parent for path in (target / "bastide").rglob("*_pb2.py")}
    for package in sorted(packages | {parent for found in packages for parent in found.parents}):
        if package.is_relative_to(target / "bastide"):
            (package / "__init__.py").touch()
    (target / "bastide" / "py.typed").touch()


if __name__ == "__main__":
    main()
