"""The page to try models on, and the page that lists the service's operations."""

from html import escape
from importlib.resources import files

from fastapi import FastAPI, Response

from convnext.serve.answers import OpenApi

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
_FILES = {"": "text/html", "page.css": "text/css"} | dict.fromkeys(("page.js", "draw.js", "camera.js"), "text/javascript")


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


def listing(description: OpenApi) -> str:
    """Return a page of HTML with the operations of an OpenAPI description. It needs only the service's own style sheet.

    (FastAPI's own page loads its scripts from another host.)
    """
    operations = [
        _operation(method, path, operation) for path, methods in description["paths"].items() for method, operation in methods.items()
    ]
    title = escape(f"{description['info']['title']} {description['info']['version']}")
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{title}</title><link rel="icon" href="data:,"><link rel="stylesheet" href="page.css">'
        f'<body class="docs"><header><h1>{title}</h1>'
        f'<nav><a href="./">the page</a> <a href="openapi.json">openapi.json</a></nav></header>'
        f"<main>{''.join(operations)}</main></body></html>"
    )


def _operation(method: str, path: str, operation: OpenApi) -> str:
    parameters = [(f"?{one['name']}=", one.get("description", "")) for one in operation.get("parameters", ())]
    body = operation.get("requestBody", {})
    bodies = [("body", f"{body['description']} ({', '.join(body['content'])})")] if body else []
    answers = [(status, one["description"]) for status, one in operation["responses"].items()]
    needs = ["Needs <code>Authorization: Bearer …</code> if the service has a token."] if "security" in operation else []
    return (
        f"<section><h2><code>{method.upper()} {escape(path)}</code> {escape(operation['summary'])}</h2>"
        f"<pre>{escape(operation.get('description', ''))}</pre>{_rows([*parameters, *bodies])}{_rows(answers)}{''.join(needs)}</section>"
    )


def _rows(rows: list[tuple[str, str]]) -> str:
    cells = [f"<dt><code>{escape(name)}</code></dt><dd>{escape(text)}</dd>" for name, text in rows]
    return f"<dl>{''.join(cells)}</dl>" if cells else ""
