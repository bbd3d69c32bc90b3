"""Start tritonserver on the entries of its group; the words of the command line are handed on to it."""

import os
import secrets
import sys

from manifest_entries import MODELS, loaded

RESTRICTED = "model-repository,shared-memory,statistics,trace,logging"


def command(words: list[str]) -> list[str]:
    key = os.environ.get("TRITON_KEY") or secrets.token_urlsafe(32)
    return [
        "tritonserver",
        f"--model-repository={os.environ.get('REPOSITORY') or MODELS}",
        "--model-control-mode=explicit",
        *(f"--load-model={name}" for name in sorted(loaded())),
        "--disable-auto-complete-config",
        # an entry that cannot be loaded leaves the others alone, and Triton's own readiness, which turns false with any
        # load, is not asked: probe.py is
        "--exit-on-error=false",
        "--strict-readiness=false",
        # its HTTP, which a large form can end, is for the probes alone
        "--http-address=127.0.0.1",
        "--grpc-address=0.0.0.0",
        "--metrics-address=0.0.0.0",
        f"--grpc-restricted-protocol={RESTRICTED}:adapter-key={key}",
        *words,
    ]


if __name__ == "__main__":
    words = command(sys.argv[1:])
    os.execvp(words[0], words)
