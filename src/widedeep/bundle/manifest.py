"""The manifest: a bundle's files with their checksums, and the format that they have."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from widedeep.errors import BundleError
from widedeep.files import file_sha256

__all__ = ["FORMAT_VERSION", "MANIFEST", "FileEntry", "Manifest", "check_files", "read_manifest"]

Engine = Literal["native", "graph", "onnx"]
FORMAT_VERSION = 1
PARTS_FORMAT = 2  # of bundles whose weights are cut into parts
PACKED_FORMAT = 3  # of bundles whose tables are packed, in one file or in parts
READABLE_FORMATS = (1, 2, 3)
MANIFEST = "manifest.json"
PATCH = "patch.safetensors"  # of a bundle that is kept as its changes since another one
_AGAIN = "copy the bundle again, or export it again"


@dataclass(frozen=True, kw_only=True, slots=True)
class FileEntry:
    """A file of a bundle.

    Args:
        size: Size in bytes.
        sha256: SHA-256 of the contents, 64 hex digits.
    """

    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """Format, origin and files of a bundle.

    Args:
        format_version: Version of the directory's layout: 1; 2 where the weights are cut into
            parts; 3 where tables of embeddings are in bf16, int8 or int4.
        engine: What computes the deep part: ``"native"`` for the standard tower, ``"graph"`` for a
            program of native operations, ``"onnx"`` for ONNX Runtime.
        created_by: Version of widedeep that wrote it.
        schema_fingerprint: Fingerprint of the training schema.
        files: All files but the manifest itself.
        history: The columns that a request must bring, computed from the user's and the items'
            earlier events as :attr:`Schema.history` says.
    """

    format_version: int
    engine: Engine
    created_by: str
    schema_fingerprint: str
    files: Mapping[str, FileEntry]
    history: tuple[str, ...] = ()

    def to_text(self) -> str:
        """Return the manifest's one and only text: equal manifests are equal byte by byte."""
        body = asdict(self)
        if not self.history:
            del body["history"]
        return json.dumps({**body, "sha256": _seal(body)}, indent=1) + "\n"


def _seal(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def read_manifest(path: Path) -> Manifest:
    """Read the manifest of the bundle at ``path``."""
    file = path / MANIFEST
    if not path.is_dir():
        raise BundleError(f"{path}: got no directory, expected a bundle; check the path")
    try:
        raw = file.read_bytes()
    except FileNotFoundError as error:
        versions = sorted(each.parent.name for each in path.glob(f"*/{MANIFEST}"))
        if versions:
            raise BundleError(
                f"{path}: got a folder of versions ({', '.join(versions[:5])}), expected a bundle; "
                f"name one of them: {path / versions[-1]}"
            ) from error
        raise BundleError(
            f"{path}: got a directory without {MANIFEST}: it is no bundle, or one that was copied "
            f"only in part; {_AGAIN}"
        ) from error
    try:
        body = json.loads(raw)
        sealed = body.pop("sha256") == _seal(body)
        version = body["format_version"]
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise BundleError(f"{file}: got a damaged manifest ({error!r}); {_AGAIN}") from error
    if sealed and version not in READABLE_FORMATS:
        raise BundleError(
            f"{file}: got bundle format {version}, this version of widedeep reads formats "
            f"{READABLE_FORMATS[0]} to {READABLE_FORMATS[-1]}; export the model with this version, "
            f"or install the one that wrote it ({body.get('created_by')})"
        )
    try:
        files = {name: FileEntry(**entry) for name, entry in body["files"].items()}
        history = tuple(body.get("history", ()))
        manifest = Manifest(**{**body, "files": files, "history": history})
    except (KeyError, AttributeError, TypeError) as error:
        raise BundleError(f"{file}: got a damaged manifest ({error!r}); {_AGAIN}") from error
    # Compared as text, so that a changed space or escape is an error too.
    if raw != manifest.to_text().encode():
        raise BundleError(f"{file}: its contents do not match its own checksum; {_AGAIN}")
    if manifest.engine not in get_args(Engine):
        raise BundleError(
            f"{file}: got engine {manifest.engine!r}, expected one of {get_args(Engine)}; install "
            f"the version that wrote it ({manifest.created_by})"
        )
    return manifest


def file_entries(path: Path) -> dict[str, FileEntry]:
    """Return the size and checksum of every file in a directory, by name."""
    return {
        file.name: FileEntry(size=file.stat().st_size, sha256=file_sha256(file))
        for file in sorted(path.iterdir())
        if file.name != MANIFEST
    }


def check_files(path: Path, manifest: Manifest, *, verify: bool) -> None:
    """Check that a bundle has the files its manifest names, and no other."""
    present = {file.name for file in path.iterdir()} - {MANIFEST}
    if PATCH in present:
        raise BundleError(
            f"{path}: got a patch of another version, expected a whole bundle; name the version in "
            "a command line, or publish it whole"
        )
    for name in sorted(present - manifest.files.keys()):
        raise BundleError(
            f"{path / name}: got a file that the bundle's manifest does not know; move it away"
        )
    for name, entry in manifest.files.items():
        file = path / name
        if name not in present:
            raise BundleError(f"{file}: the file is missing; {_AGAIN}")
        size = file.stat().st_size
        if size != entry.size:
            raise BundleError(f"{file}: got {size} bytes, expected {entry.size}; {_AGAIN}")
        if verify and file_sha256(file) != entry.sha256:
            raise BundleError(f"{file}: its SHA-256 is not the manifest's, it is damaged; {_AGAIN}")
