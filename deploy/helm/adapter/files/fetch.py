"""Copy a model repository from object storage into a folder: fetch.py URL FOLDER [all|manifest]."""

import sys
from pathlib import Path


def fetch(url: str, folder: Path, what: str = "all") -> None:
    try:
        import fsspec

        files, root = fsspec.core.url_to_fs(url.rstrip("/"))
    except ImportError as error:
        raise SystemExit(
            f"This image cannot read {url} ({error}): build that of the front with --build-arg EXTRAS=[s3] or [gcs]."
        ) from None
    # first, since it is written last: what it names is there; what is put there meanwhile, it does not name
    manifest = files.cat_file(f"{root}/manifest.json")
    if what == "all":
        files.get(f"{root}/", f"{folder}/", recursive=True)
    (folder / "manifest.json").write_bytes(manifest)


if __name__ == "__main__":
    fetch(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
