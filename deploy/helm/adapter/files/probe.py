"""Exit with 0 where all ("all") or some ("any") of the entries that fronts call here are ready."""

import os
import sys
import urllib.error
import urllib.parse
import urllib.request

from manifest_entries import needed

TRITON = os.environ.get("TRITON_HTTP", "http://127.0.0.1:8000")


def answers(path: str) -> bool:
    try:
        with urllib.request.urlopen(f"{TRITON}{path}", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def main(which: str) -> int:
    if not answers("/v2/health/live"):
        print("Triton does not answer.")
        return 1
    entries = sorted(needed())
    missing = [name for name in entries if not answers(f"/v2/models/{urllib.parse.quote(name)}/ready")]
    if missing and (which == "all" or len(missing) == len(entries)):
        print(f"Not ready: {', '.join(missing)}.")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
