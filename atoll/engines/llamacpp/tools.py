"""Tool calls from a model that was not trained to make them.

Method and limits: docs/decisions/001-schema-tool-calls.md.

    choose: which tools the last message is about   (words, not the model)
    prompt: a worked example of filling in fields
    decode: under the tool's own schema, free strings and numbers taken from the user's words
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any

from atoll.engines.llamacpp.schemas import rule

Message = dict[str, Any]

THRESHOLD = 0.8
SPAN_WORDS = 16
GROUNDED_WORDS = 96
WEIGHT_NAME, WEIGHT_DESCRIPTION, WEIGHT_FIELD = 2.0, 1.0, 0.7

COMMON = """a about an and any are as at be been but by can could current did do does for from get give had has have
hello help hi how i if in into is it its just may me my no not of on one or our please returns say she should so some
take tell than thank thanks that the their them then there these they this to up use used user using was we were
what when where which who whose why will with would yes you your"""
STOP_WORDS = frozenset(COMMON.split())
CUES = {
    "rain": "weather", "raining": "weather", "snow": "weather", "sunny": "weather", "forecast": "weather",
    "temperature": "weather", "humid": "weather", "look": "search", "find": "search", "news": "search",
    "google": "search", "remind": "reminder", "alarm": "timer", "mail": "email", "sum": "calculator",
    "plus": "calculator", "minus": "calculator", "times": "calculator", "divided": "calculator",
    "arithmetic": "calculator", "math": "calculator", "shell": "command", "terminal": "command",
}  # fmt: skip
ENDINGS = ("ations", "ation", "ators", "ator", "ating", "ates", "ate", "ings", "ing", "ers", "er", "ed", "es", "s")
ARITHMETIC = re.compile(r"\d\s*(?:[-+*/^×÷%]|x(?=\s*\d))\s*\(?\s*\d")
EXAMPLES: list[Message] = [
    {"role": "system", "content": "Extract values from the message as JSON."},
    {"role": "user", "content": "Message: Play the song Yesterday by the Beatles\nFields: song, artist"},
    {"role": "assistant", "content": '{"song": "Yesterday", "artist": "the Beatles"}'},
    {"role": "user", "content": "Message: Order 3 large coffees\nFields: item, quantity"},
    {"role": "assistant", "content": '{"item": "large coffees", "quantity": 3}'},
]


@dataclass(frozen=True, slots=True)
class Function:
    name: str
    description: str
    parameters: dict[str, Any]

    @property
    def fields(self) -> dict[str, Any]:
        found = self.parameters.get("properties")
        return found if isinstance(found, dict) else {}


@dataclass(frozen=True, slots=True)
class Call:
    """A request for a call: the messages and grammar to send; `name` is empty if the model chooses the tool."""

    messages: list[Message]
    grammar: str
    name: str


def functions(tools: list[dict[str, Any]]) -> list[Function]:
    empty = {"type": "object", "properties": {}}
    found = (tool["function"] for tool in tools)
    return [Function(f["name"], f.get("description") or "", f.get("parameters") or empty) for f in found]


def choose(offered: list[Function], messages: list[Message], choice: Any) -> list[Function]:
    """The tools that may be called now; none means an answer in words.

    A named function is itself. "required" is the best match, or every tool if nothing matches. "auto" is the best
    match above the threshold; after results, words that the called tools account for no longer count.
    """
    if choice == "none" or not offered:
        return []
    if isinstance(choice, dict):
        return [f for f in offered if f.name == choice["function"]["name"]]
    asked, called = _turn(messages)
    known = {f.name: f for f in offered}
    explained = {w for name in called if name in known for w in (*_weights(known[name]), *_values(called[name]))}
    scores = score(offered, _words(asked) - explained)
    open_ = {n: s for n, s in scores.items() if n not in called or choice == "required"}
    best = max(open_.values(), default=0.0)
    if best >= THRESHOLD:
        return [f for f in offered if open_.get(f.name, 0.0) >= best - 1e-9]
    return list(offered) if choice == "required" else []


def score(offered: list[Function], asked: set[str]) -> dict[str, float]:
    """Sum over shared words of weight x log(1 + tools / tools that have the word), by tool name."""
    weights = {f.name: _weights(f) for f in offered}
    spread: dict[str, int] = {}
    for words in weights.values():
        for word in words:
            spread[word] = spread.get(word, 0) + 1
    count = len(offered)
    return {
        name: sum(words[w] * math.log(1 + count / spread[w]) for w in asked if w in words) / math.log(1 + count)
        for name, words in weights.items()
    }


def request(candidates: list[Function], messages: list[Message]) -> Call:
    """What to send so that the answer is the arguments of the one candidate, or name and arguments of one of them."""
    asked, _ = _turn(messages)
    if len(candidates) == 1:
        function = candidates[0]
        fields = ", ".join(function.fields)
        prompt = [*EXAMPLES, {"role": "user", "content": f"Message: {asked}\nFields: {fields}"}]
        return Call(prompt, f"%llguidance {{}}\nstart: {rule(ground(function, asked))}", function.name)
    lines = "\n".join(f"{f.name}({', '.join(f.fields)}): {f.description}" for f in candidates)
    system = f"Choose the function that helps with the message.\nFunctions:\n{lines}"
    prompt = [{"role": "system", "content": system}, {"role": "user", "content": asked}]
    return Call(prompt, _choice_grammar(candidates, [ground(f, asked) for f in candidates]), "")


def forced(candidates: list[Function], messages: list[Message]) -> Call:
    """For models that know tools: a call of one of `candidates`, whatever the model would rather do.

    llama.cpp does not enforce `tool_choice` and takes no grammar beside `tools`, so they are told in the system prompt.
    """
    told = [{"name": f.name, "description": f.description, "parameters": f.parameters} for f in candidates]
    lines = "\n".join(json.dumps(tool) for tool in told)
    system = (
        "Call exactly one of the functions within <tools></tools>. Answer with JSON only: "
        f'{{"name": <function-name>, "arguments": <args-json-object>}}\n<tools>\n{lines}\n</tools>'
    )
    history = transcript(messages)
    if history[0]["role"] == "system":
        system = f"{history[0]['content']}\n\n{system}"
        history = history[1:]
    grammar = _choice_grammar(candidates, [_closed(f.parameters) for f in candidates])
    return Call([{"role": "system", "content": system}, *history], grammar, "")


def _choice_grammar(candidates: list[Function], schemas: list[dict[str, Any]]) -> str:
    heads = [json.dumps('{"name": ' + json.dumps(f.name) + ', "arguments": ') for f in candidates]
    start = " | ".join(f'{head} arguments_{i} "}}"' for i, head in enumerate(heads))
    rules = [f"arguments_{i}: {rule(schema)}" for i, schema in enumerate(schemas)]
    return "\n".join(["%llguidance {}", f"start: {start}", *rules])


def ground(function: Function, text: str) -> dict[str, Any]:
    """The parameters, closed to unknown fields; free strings and numbers are taken from `text` if it is short.

    A value that the schema itself restricts (enum, const, pattern, format, length) is left as it is; numbers are those
    of `text` that are within minimum and maximum, if there are any.
    """
    closed = _closed(function.parameters)
    if len(text.split()) > GROUNDED_WORDS or not function.fields:
        return closed
    spans = _spans(text, _words(function.name, cues=False))
    numbers = [n for n in map(float, re.findall(r"-?\d+(?:\.\d+)?", text)) if math.isfinite(n)]
    closed["properties"] = {name: _grounded(field, spans, numbers) for name, field in function.fields.items()}
    return closed


def _closed(parameters: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, **parameters}


PLAIN = {"type", "description", "title", "default", "examples"}


def _grounded(field: Any, spans: list[str], numbers: list[float]) -> Any:
    if not isinstance(field, dict):
        return field
    kind, restricted = field.get("type"), field.keys() - PLAIN
    if kind == "string" and spans and not restricted:
        return {"enum": spans}
    if kind in ("integer", "number") and restricted <= {"minimum", "maximum"}:
        low, high = field.get("minimum", -math.inf), field.get("maximum", math.inf)
        if not isinstance(low, int | float) or not isinstance(high, int | float):
            return field
        fit = {int(n) if n == int(n) else n for n in numbers if low <= n <= high and (kind == "number" or n == int(n))}
        return {"enum": sorted(fit)} if fit else field
    return field


def _spans(text: str, named: set[str]) -> list[str]:
    """Runs of up to SPAN_WORDS words as they stand in `text`, without punctuation around them.

    Left out are runs over the first word that names the function ("translate ..."), and lone stop words.
    """
    ends = [m.span() for m in re.finditer(r"\S+", text)]
    command = next((i for i, (a, b) in enumerate(ends) if _words(text[a:b]) & named), -1)
    found: dict[str, None] = {}
    for i, (start, _) in enumerate(ends):
        for j, (_, end) in enumerate(ends[i : i + SPAN_WORDS], start=i):
            span = text[start:end].strip(" .,!?;:'\"()[]{}<>“”‘’`")
            if span and not i <= command <= j and (j > i or span.lower() not in STOP_WORDS):
                found.setdefault(span)
    return list(found)


def transcript(messages: list[Message]) -> list[Message]:
    """The conversation for a template that knows neither tool_calls nor the role `tool`."""
    names: dict[str, str] = {}
    told: list[Message] = []
    for message in messages:
        calls = message.get("tool_calls") or ()
        names.update({call["id"]: call["function"]["name"] for call in calls})
        if message["role"] == "tool":
            name = names.get(message.get("tool_call_id", ""), "the function")
            result = f"Result of {name}: {message['content']}\nAnswer with this result."
            told.append({"role": "user", "content": result})
        elif calls:
            made = [f"{c['function']['name']}({c['function']['arguments']})" for c in calls]
            told.append({"role": "assistant", "content": "\n".join(filter(None, [message.get("content"), *made]))})
        else:
            told.append(message)
    return told


def _turn(messages: list[Message]) -> tuple[str, dict[str, str]]:
    """The last thing the user said, and the calls made since: tool name -> arguments."""
    asked, called = "", {}
    for message in messages:
        if message["role"] == "user":
            asked, called = message["content"] or "", {}
        for call in message.get("tool_calls") or ():
            called[call["function"]["name"]] = call["function"]["arguments"]
    return asked, called


def _weights(function: Function) -> dict[str, float]:
    """How much each word says for this tool."""
    weights: dict[str, float] = {}

    def add(text: str, weight: float) -> None:
        for word in _words(text, cues=False):
            weights[word] = max(weights.get(word, 0.0), weight)

    add(function.name, WEIGHT_NAME)
    add(function.description, WEIGHT_DESCRIPTION)
    for name, field in function.fields.items():
        add(name, WEIGHT_FIELD)
        if isinstance(field, dict):
            add(str(field.get("description") or ""), WEIGHT_FIELD)
            add(" ".join(str(v) for v in field.get("enum") or ()), WEIGHT_DESCRIPTION)
    return weights


def _values(arguments: str) -> set[str]:
    return _words(arguments, cues=False)


def _words(text: str, *, cues: bool = True) -> set[str]:
    """Stems of the words that mean something; with cues, also the words that everyday ones point to."""
    plain = re.findall(r"[^\W\d_]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", text).lower())
    found = set(plain)
    if cues:
        found |= {CUES[w] for w in plain if w in CUES}
        if ARITHMETIC.search(text):
            found |= {"calculator", "expression", "arithmetic"}
    return {_stem(word) for word in found - STOP_WORDS}


def _stem(word: str) -> str:
    for ending in ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word
