"""The page at /docs: the service's operations, from its OpenAPI description. (FastAPI's own loads its scripts from another host.)"""

from html import escape
from typing import Any

OpenApi = dict[str, Any]  # as FastAPI gives it


def listing(description: OpenApi) -> str:
    """Return a page of HTML that needs only the service's own style sheet."""
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
