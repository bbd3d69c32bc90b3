"""How large the larger work is; served and sent by different processes."""

FLOATS = 1 << 18  # 1 MB as float32
ROWS = 256
TEXT_BYTES = 100_000
