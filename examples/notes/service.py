"""Notes in an SQLite file: a table made once, a connection for each worker. `adapter serve service:Notes`."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from pathlib import Path

import adapter

FILE = Path(os.environ.get("NOTES_FILE") or Path(tempfile.gettempdir()) / "adapter-notes.db")


@adapter.service(workers=2)
class Notes:
    """Keeps short notes, and finds them again."""

    @adapter.on_deployment
    @staticmethod
    def create_table() -> None:
        with sqlite3.connect(FILE) as db:
            db.execute("CREATE TABLE IF NOT EXISTS notes (text TEXT NOT NULL)")
        db.close()
        print(f"The notes are in {FILE}.")

    @adapter.on_startup
    def connect(self) -> None:
        # plain methods run on a thread of their own, one at a time
        self.db = sqlite3.connect(FILE, timeout=10, check_same_thread=False)
        print("A worker is connected.")

    @adapter.api
    def add(self, text: str) -> int:
        """Keep a note; returns how many there are."""
        with self.db:
            self.db.execute("INSERT INTO notes VALUES (?)", (text,))
        return int(self.db.execute("SELECT count(*) FROM notes").fetchone()[0])

    @adapter.api
    def find(self, word: str, limit: int = 10) -> list[str]:
        """The notes with this word in them, the newest first."""
        rows = self.db.execute(
            "SELECT text FROM notes WHERE instr(lower(text), lower(?)) ORDER BY rowid DESC LIMIT ?", (word, limit)
        )
        return [text for (text,) in rows]

    @adapter.on_shutdown
    def disconnect(self) -> None:
        self.db.close()
        print("A worker has closed its connection.")
