"""The OpenAPI 3.1 document, made from the request models themselves."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from atoll import __version__
from atoll.gateway.admin_schemas import KeyChange, NewKey, NewModel, TierChange
from atoll.gateway.audio import SpeechRequest, TranscriptionForm
from atoll.gateway.embeddings import EmbeddingsRequest
from atoll.gateway.invites import Joining
from atoll.gateway.messages_schemas import CountRequest, MessagesRequest
from atoll.gateway.ocr import OcrRequest
from atoll.gateway.places import Drill, Explain, StatusChange
from atoll.gateway.policies import Consent, Promote, Reset, Run
from atoll.gateway.responses_schemas import ResponsesRequest
from atoll.gateway.runs import NewRun
from atoll.gateway.schemas import ChatRequest, CompletionRequest

BODIES: list[tuple[str, str, str, type[BaseModel]]] = [
    ("post", "/v1/chat/completions", "OpenAI chat completions", ChatRequest),
    ("post", "/v1/completions", "OpenAI completions (legacy)", CompletionRequest),
    ("post", "/v1/responses", "OpenAI responses", ResponsesRequest),
    ("post", "/v1/embeddings", "OpenAI embeddings", EmbeddingsRequest),
    ("post", "/v1/audio/transcriptions", "OpenAI transcriptions; the sound is the field `file`", TranscriptionForm),
    ("post", "/v1/audio/speech", "OpenAI speech", SpeechRequest),
    ("post", "/v1/messages", "Anthropic messages", MessagesRequest),
    ("post", "/v1/messages/count_tokens", "Anthropic token counts", CountRequest),
    ("post", "/atoll/v1/ocr", "Text in a picture", OcrRequest),
    ("post", "/atoll/v1/keys", "Create an API key; the secret is shown once", NewKey),
    ("patch", "/atoll/v1/keys/{id}", "Change a key's name, limits or policy", KeyChange),
    ("post", "/atoll/v1/models", "Install a model; progress as server-sent events", NewModel),
    ("put", "/atoll/v1/tiers/{tier}", "Put a model behind a tier", TierChange),
    ("patch", "/atoll/v1/regions/{id}", "Open, drain or close a region, or tell that it is built", StatusChange),
    ("post", "/atoll/v1/regions/{id}/drill", "Break a region for a while", Drill),
    ("post", "/atoll/v1/regions/{id}/join", "Become a region, with the token of an invitation", Joining),
    ("post", "/atoll/v1/runs", "Queue a recipe or steps of your own", NewRun),
    ("post", "/atoll/v1/policies/{id}/promote", "Serve a robot policy that passed its gate", Promote),
    ("post", "/atoll/v1/policies/{id}/reset", "Release a stopped policy, with the stop's token", Reset),
    ("post", "/atoll/v1/policies/{id}/consent", "Agree that a policy's tool moves a simulated robot", Consent),
    ("post", "/atoll/v1/policies/{id}/run", "Call a policy's tool: one simulated episode", Run),
    ("post", "/atoll/v1/route/explain", "Where a request would go now, and why", Explain),
]

READS: list[tuple[str, str, str, tuple[str, ...]]] = [
    ("get", "/v1/models", "Models and tiers", ()),
    ("get", "/v1/models/{id}", "One model", ()),
    ("get", "/v1/responses/{id}", "A stored response", ()),
    ("delete", "/v1/responses/{id}", "Forget a stored response", ()),
    ("get", "/v1/responses/{id}/input_items", "What a stored response was asked", ("limit",)),
    ("get", "/atoll/v1/me", "The calling key and its month", ()),
    ("get", "/atoll/v1/status", "What runs here", ()),
    ("get", "/atoll/v1/keys", "All keys", ()),
    ("delete", "/atoll/v1/keys/{id}", "Revoke a key", ()),
    ("get", "/atoll/v1/usage", "Usage per time bucket, key and model", ("since", "until", "step", "key_id")),
    ("get", "/atoll/v1/requests", "The ledger, newest first", ("limit", "before", "before_id", "key_id")),
    ("get", "/atoll/v1/regions", "The regions, and how they are now", ()),
    ("get", "/atoll/v1/regions/{id}", "One region, with the sources of its values", ()),
    ("delete", "/atoll/v1/regions/{id}/join", "Forget the machine that joined; the region is closed", ()),
    ("post", "/atoll/v1/regions/{id}/invite", "A token with which a machine can become a region, once", ()),
    ("get", "/atoll/v1/laws", "Laws that bear on where data may go: data to edit, not legal advice", ()),
    ("get", "/atoll/v1/requests/{id}/route", "Why a request went where it did", ()),
    ("get", "/atoll/v1/requests/{id}/receipt", "What was processed and stored where, signed", ()),
    ("get", "/atoll/v1/receipts/key", "The public key that receipts are signed with", ()),
    ("get", "/atoll/v1/audit", "The ledger checked against its own rules of residency", ("before", "before_id")),
    ("get", "/atoll/v1/stages", "Stages with the schema of their config, and recipes", ()),
    ("get", "/atoll/v1/runs", "Runs, newest first", ("limit",)),
    ("get", "/atoll/v1/runs/{id}", "One run and its steps", ()),
    ("get", "/atoll/v1/runs/{id}/events", "A run as it goes on, as server-sent events", ()),
    ("get", "/atoll/v1/runs/{id}/steps/{step}/view", "The latest picture of a step under way", ()),
    ("post", "/atoll/v1/runs/{id}/cancel", "Stop a run; it can be resumed", ()),
    ("post", "/atoll/v1/runs/{id}/resume", "Go on with a run that failed or was cancelled", ()),
    ("get", "/atoll/v1/artifacts", "What runs have made, newest first", ("limit",)),
    ("get", "/atoll/v1/artifacts/{digest}", "One artifact, its files and what it was made from", ()),
    ("get", "/atoll/v1/artifacts/{digest}/files/{path}", "A file of an artifact, or a range of it", ()),
    ("get", "/atoll/v1/policies", "Robot policies: what is served, under which limits", ()),
    ("get", "/atoll/v1/policies/{id}", "One robot policy; a WebSocket at /act answers observations", ()),
    ("get", "/atoll/v1/policies/{id}/tool", "A policy as a tool, for the field `tools` of a chat request", ()),
    ("post", "/atoll/v1/policies/{id}/rollback", "Serve the version before", ()),
    ("post", "/atoll/v1/policies/{id}/stop", "Emergency stop; the answer has the token that releases it", ()),
    ("get", "/atoll/v1/catalogue", "Models that can be installed by short name", ()),
    ("delete", "/atoll/v1/models/{id}", "Remove a model", ()),
    ("get", "/healthz", "The process lives", ()),
    ("get", "/readyz", "The chat model answers", ()),
]

ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


def document() -> dict[str, Any]:
    models = list(dict.fromkeys(schema for _, _, _, schema in BODIES))
    refs, definitions = models_json_schema(
        [(m, "validation") for m in models], ref_template="#/components/schemas/{model}"
    )
    paths: dict[str, dict[str, Any]] = {}
    for method, path, summary, schema in BODIES:
        operation = _operation(path, summary, ())
        content = {"application/json": {"schema": refs[(schema, "validation")]}}
        if schema is TranscriptionForm:
            content = {"multipart/form-data": content["application/json"]}
        operation["requestBody"] = {"required": True, "content": content}
        paths.setdefault(path, {})[method] = operation
    for method, path, summary, query in READS:
        paths.setdefault(path, {})[method] = _operation(path, summary, query)
    form = definitions["$defs"]["TranscriptionForm"]
    form["properties"]["file"] = {"type": "string", "format": "binary"}
    form["required"].append("file")
    return {
        "openapi": "3.1.0",
        "info": {"title": "Atoll", "version": __version__, "license": {"name": "Apache-2.0"}},
        "security": [{"bearer": []}],
        "paths": paths,
        "components": {
            "schemas": {**definitions.get("$defs", {}), "Error": ERROR},
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(path: str, summary: str, query: tuple[str, ...]) -> dict[str, Any]:
    names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    parameters = [{"name": n, "in": "path", "required": True, "schema": {"type": "string"}} for n in names]
    text, amount = {"type": "string"}, {"type": "number", "minimum": 0}
    parameters += [{"name": n, "in": "query", "schema": text if n.endswith("_id") else amount} for n in query]
    schema = {"$ref": "#/components/schemas/Error"}
    error = {"description": "Error", "content": {"application/json": {"schema": schema}}}
    return {
        "summary": summary,
        "parameters": parameters,
        "responses": {"2XX": {"description": "Success"}, "4XX": error, "5XX": error},
    }
