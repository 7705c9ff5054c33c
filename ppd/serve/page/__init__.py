"""The page: files that are sent as they lie here, with nothing from other hosts."""

from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_FOLDER = Path(__file__).parent
_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def page_routes() -> list[Route]:
    """The page at /, and its parts under /page/."""
    files = sorted(file for file in _FOLDER.iterdir() if file.suffix in _TYPES)
    paths = {file: "/" if file.name == "index.html" else f"/page/{file.name}" for file in files}
    return [_route(path, file.read_bytes(), _TYPES[file.suffix]) for file, path in paths.items()]


def _route(path: str, content: bytes, kind: str) -> Route:
    headers = {"Content-Security-Policy": _POLICY, "Cache-Control": "no-cache"}

    async def send(_: Request) -> Response:
        return Response(content, headers=headers, media_type=kind)

    return Route(path, send)
