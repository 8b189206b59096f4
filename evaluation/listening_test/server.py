"""`clipsynth listen`: the blind listening test of the paper's Table 2 in a browser."""

from __future__ import annotations

import re
import secrets
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import FileResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, Field

from clipsynth.security.headers import HEADERS
from evaluation.listening_test.design import Item, order
from evaluation.listening_test.ratings import HIGHEST, LOWEST, SCALES, RatingStore, Scale

PAGE = Path(__file__).with_name("static")
COOKIE = "rater"
_RATER = re.compile(r"[A-Za-z0-9_-]{1,40}")


class Rating(BaseModel):
    """The body of a rating."""

    value: Annotated[int, Field(ge=LOWEST, le=HIGHEST)]


class CurrentItem(BaseModel):
    """The sound to rate now, its query, and this rater's ratings of it so far."""

    id: str
    query: str
    ratings: dict[str, int]


class RaterProgress(BaseModel):
    """The progress of a rater; `item` is null at the end."""

    done: int
    total: int
    item: CurrentItem | None


def rater_of(request: Request) -> str:
    """Return the rater's name from the cookie that the page sets."""
    rater = request.cookies.get(COOKIE, "")
    if not _RATER.fullmatch(rater):
        raise HTTPException(401, "open the page first: it sets the cookie with your name")
    return rater


Rater = Annotated[str, Depends(rater_of)]


def create_app(items: Sequence[Item], answers: RatingStore, *, seed: int) -> FastAPI:
    """Return the app of a test; `seed` sets the raters' orders."""
    app = FastAPI(title="CLIPSynth listening test", docs_url=None, redoc_url=None, openapi_url=None)
    by_id = {item.id: item for item in items}

    @app.middleware("http")
    async def headers(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await call_next(request)
        response.headers.update({**HEADERS, "Cache-Control": "no-store"})
        return response

    @app.get("/")
    def page(request: Request, rater: str | None = None) -> Response:
        if rater is not None and not _RATER.fullmatch(rater):
            raise HTTPException(422, "`rater` must be 1 to 40 letters, digits, - and _")
        known = _RATER.fullmatch(request.cookies.get(COOKIE, ""))
        response = FileResponse(PAGE / "index.html") if rater is None else RedirectResponse("/", 303)
        if rater is not None or not known:
            name = rater or secrets.token_hex(6)
            response.set_cookie(COOKIE, name, max_age=365 * 86400, httponly=True, samesite="strict")
        return response

    @app.get("/next")
    def next_item(rater: Rater) -> RaterProgress:
        """Return the first item without all its ratings."""
        given = answers.of(rater)
        open_items = [i for i in order(items, seed, rater) if len(given.get(i.id, {})) < len(SCALES)]
        current = None
        if open_items:
            item = open_items[0]
            current = CurrentItem(id=item.id, query=item.query, ratings=given.get(item.id, {}))
        return RaterProgress(done=len(items) - len(open_items), total=len(items), item=current)

    def find(item_id: str) -> Item:
        if item_id not in by_id:
            raise HTTPException(404, "this test has no such sound")
        return by_id[item_id]

    @app.get("/items/{item_id}.wav")
    def sound(item_id: str, rater: Rater) -> Response:
        del rater
        return Response(find(item_id).wav(), media_type="audio/wav")

    @app.put("/items/{item_id}/{scale}", status_code=204)
    def rate(item_id: str, scale: Scale, rating: Rating, rater: Rater) -> None:
        answers.save(rater, find(item_id), scale, rating.value)

    app.mount("/static", StaticFiles(directory=PAGE))
    return app
