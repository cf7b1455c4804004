"""The service of `convnext serve` as replicas of Ray Serve, which restarts them when they or their machines are lost.

serve run examples.ray_serve:app model=runs/demo replicas=2
"""

from pathlib import Path

from fastapi import FastAPI
from ray import serve
from ray.serve import Application

import convnext
from convnext.serve.app import create_app


def app(given: dict[str, str]) -> Application:
    """Return the application for the arguments of `serve run`: `model`, as for `convnext serve`, and the number of `replicas`."""
    model, replicas = given["model"], int(given.get("replicas", 1))
    name = Path(model).stem
    if Path(model).exists():
        model = str(Path(model).resolve())  # replicas start in other folders

    def build() -> FastAPI:  # in each replica: networks stay where they are loaded
        return create_app({name: convnext.load(model)}, token=given.get("token"))

    # Ray passes on more requests than the service queues, so that it refuses those beyond with 503, as `convnext serve` does.
    deployment = serve.deployment(serve.ingress(build)(), name="convnext", num_replicas=replicas, max_ongoing_requests=512)
    return deployment.bind()
