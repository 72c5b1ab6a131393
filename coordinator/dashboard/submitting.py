"""Begin a fine-tune or a batch from the browser. The page's script uploads and asks as programs do."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from coordinator.api.auth import Caller
from coordinator.api.openai_models import asked_by
from coordinator.batches.batch import ENDPOINTS
from coordinator.core.jobs import Kind
from coordinator.dashboard.page import Site


def add_submitting(site: Site, router: APIRouter) -> None:
    context = site.desk.context

    async def finetune(request: Request, caller: Caller) -> Response:
        """It begins with a base: tuned models are left out. Those that are trained here come first."""
        workers = context.pool.engine.fleet.workers.values()
        trained = {
            s.name for w in workers if w.sharing for s in w.models.values() if Kind.FINETUNE in s.kinds
        }
        models = [body["id"] for body in asked_by(context, caller) if "parent" not in body]
        models.sort(key=lambda model: model not in trained)
        wanted = request.query_params.get("model", "")
        return await site.page(
            request,
            caller,
            "new_finetune.html",
            models=models,
            trained=trained,
            wanted=wanted,
            file_bytes_max=context.settings.file_bytes_max,
        )

    async def batch(request: Request, caller: Caller) -> Response:
        return await site.page(
            request,
            caller,
            "new_batch.html",
            endpoints=list(ENDPOINTS),
            file_bytes_max=context.settings.file_bytes_max,
        )

    site.add(router, "GET", "/jobs/new/finetune", finetune)
    site.add(router, "GET", "/jobs/new/batch", batch)
