"""``/docs``: the OpenAPI document as a page. Everything it loads is served from here, and it may load nothing else."""

from __future__ import annotations

from importlib.resources import files

from fastapi import APIRouter, Response

from service.errors import NotFound

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>hotswap</title>
<link rel="icon" href="docs/favicon-32x32.png">
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<div id="page"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
START = 'SwaggerUIBundle({url: "openapi.json", dom_id: "#page", deepLinking: true});\n'
KINDS = {"favicon-32x32.png": "image/png", "swagger-ui.css": "text/css", "swagger-ui-bundle.js": "text/javascript"}
KEEP = {"Cache-Control": "public, max-age=86400"}
router = APIRouter(include_in_schema=False)


@router.get("/docs")
def page() -> Response:
    return Response(PAGE, headers={"Content-Security-Policy": POLICY}, media_type="text/html")


@router.get("/docs/start.js")
def start() -> Response:
    return Response(START, headers=KEEP, media_type="text/javascript")


@router.get("/docs/{name}")
def asset(name: str) -> Response:
    """What the page loads: Swagger UI, from a package that carries it."""
    if name not in KINDS:
        raise NotFound("See /docs for what there is.")
    content = files("fastapi_swagger.resources").joinpath(name).read_bytes()
    return Response(content, headers=KEEP, media_type=KINDS[name])
