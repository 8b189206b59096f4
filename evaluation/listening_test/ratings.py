"""The ratings of a listening test in SQLite; each is on disk before it is confirmed."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from evaluation.listening_test.design import Item

Scale = Literal["quality", "relevance", "noise"]  # of the paper's Table 2
SCALES: tuple[Scale, ...] = get_args(Scale)
LOWEST, HIGHEST = 1, 5


@dataclass(frozen=True)
class StoredRating:
    """One rating, 1 to 5."""

    rater: str
    item: str
    system: str
    query: str
    scale: Scale
    value: int


class RatingStore:
    """A file of ratings. A second rating of the same sound on the same scale replaces the first."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._connect() as db:
            db.execute(
                "CREATE TABLE IF NOT EXISTS answers "
                "(rater TEXT, item TEXT, system TEXT, query TEXT, scale TEXT, value INTEGER NOT NULL, "
                "answered_at REAL NOT NULL, PRIMARY KEY (rater, item, scale))"
            )

    @contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self.path, timeout=10)) as db, db:
            yield db

    def save(self, rater: str, item: Item, scale: Scale, value: int) -> None:
        """Save a rating.

        Raises:
            ValueError: the scale does not exist, or the value is not 1 to 5.
        """
        if scale not in SCALES or not LOWEST <= value <= HIGHEST:
            scales = ", ".join(SCALES)
            raise ValueError(f"a rating is {LOWEST} to {HIGHEST} on {scales}, got {value} on {scale!r}")
        row = (rater, item.id, item.system, item.query, scale, value, time.time())
        with self._connect() as db:
            db.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?)", row)

    def of(self, rater: str) -> dict[str, dict[str, int]]:
        """Return the ratings of one rater, {item: {scale: value}}."""
        found: dict[str, dict[str, int]] = {}
        with self._connect() as db:
            rows = db.execute("SELECT item, scale, value FROM answers WHERE rater = ?", (rater,))
            for item, scale, value in rows:
                found.setdefault(item, {})[scale] = value
        return found

    def every(self) -> list[StoredRating]:
        """Return all ratings, oldest first."""
        with self._connect() as db:
            columns = "rater, item, system, query, scale, value"
            # The columns are constants.
            rows = db.execute(f"SELECT {columns} FROM answers ORDER BY answered_at").fetchall()  # noqa: S608
        return [StoredRating(*row) for row in rows]
