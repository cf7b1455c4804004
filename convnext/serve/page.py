"""The page to try models on, and the page that lists the service's operations."""

from importlib.resources import files

from fastapi import FastAPI, Response

from convnext.serve.listing import listing

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
_FILES = {"": "text/html", "page.css": "text/css", "page.js": "text/javascript", "draw.js": "text/javascript"}


def add_page(app: FastAPI) -> None:
    """Add the page and the listing of operations to the service; neither needs a token or loads anything from elsewhere."""
    headers = {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache"}

    def add(path: str, kind: str) -> None:
        content = (files("convnext.serve") / "web" / (path or "page.html")).read_bytes()

        def page() -> Response:
            return Response(content, media_type=kind, headers=headers)

        app.add_api_route(f"/{path}", page, methods=["GET", "HEAD"], include_in_schema=False)

    for path, kind in _FILES.items():
        add(path, kind)

    @app.head("/docs", include_in_schema=False)
    @app.get("/docs", include_in_schema=False)
    def docs() -> Response:
        return Response(listing(app.openapi()), media_type="text/html", headers=headers)
