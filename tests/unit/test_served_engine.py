"""What is read of the engine behind an application."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import pytest

from qm_vllm.config import QuickMergeConfig
from qm_vllm.http_options import RefuseBadOptions
from qm_vllm_patches.server import ServedEngine, served_engine
from tests.unit.fake_server import MODEL, application, engine_settings


def test_what_an_application_says_of_its_engine():
    config = QuickMergeConfig(ratio=0.3)
    found = served_engine({"app": application(config)}, "quickmerge")
    assert found == ServedEngine(config.to_dict(), MODEL)
    assert served_engine({"app": application(config)}, "other").options == {}
    company = engine_settings(config, {"kv_connector": "OffloadingConnector"})
    app = SimpleNamespace(state=SimpleNamespace(vllm_config=company))
    assert served_engine({"app": app}, "quickmerge") == found
    for app in (None, object(), SimpleNamespace(state=SimpleNamespace()), application(None)):
        assert served_engine({"app": app}, "quickmerge") is None
    assert served_engine({}, "quickmerge") is None


def status(app, path: str, options: dict) -> int:
    """Of the answer to a request with these options."""
    body, sent = json.dumps({"kv_transfer_params": {"quickmerge": options}}).encode(), []
    scope = {
        "type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "root_path": "",
        "query_string": b"", "headers": [(b"content-type", b"application/json")],
        "http_version": "1.1", "scheme": "http", "server": ("x", 1), "client": ("x", 1),
    }

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    return sent[0]["status"]


def test_the_middleware_finds_it_in_a_real_application():
    fastapi = pytest.importorskip("fastapi")
    inner, app, outer = fastapi.FastAPI(), fastapi.FastAPI(), fastapi.FastAPI()

    @inner.post("/ask")
    @app.post("/ask")
    async def ask() -> dict:
        return {}

    app.add_middleware(RefuseBadOptions)
    app.mount("/inner", inner)  # has a state of its own
    outer.mount("/outer", app)
    config = QuickMergeConfig(protect_last=200, allow_options="details")
    assert status(app, "/ask", {"details": True}) == 400  # the engine is not there yet
    app.state.vllm_config = engine_settings(config)
    for target, path in ((app, "/ask"), (app, "/inner/ask"), (outer, "/outer/ask")):
        assert status(target, path, {"details": True}) == 200
        assert status(target, path, {"max_kept": 100}) == 400
        assert status(target, path, {"saliency": "norm"}) == 400
