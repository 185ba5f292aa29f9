"""What the right answer would have been."""

from __future__ import annotations

from fastapi import APIRouter, Request

from service.http.body import JsonRoute
from service.http.routes.predict import ERRORS
from service.http.schemas import FeedbackRequest, FeedbackTaken

router = APIRouter(
    route_class=JsonRoute,
    tags=["prediction"],
    responses={status: ERRORS[status] for status in (400, 401, 403, 404, 413, 422, 503)},
)


@router.post("/v1/feedback")
async def feedback(request: Request, judgement: FeedbackRequest) -> FeedbackTaken:
    """Say whether an answer was right: by its true label, by a better summary, or with `correct`. Counted once for
    each answer, whichever replica is told."""
    name, version, right = await request.app.state.feedback.take(request.state.caller, judgement)
    return FeedbackTaken(id=judgement.id, adapter=name, version=version, correct=right)
