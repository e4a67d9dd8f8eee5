"""Policies as a service: what is promoted (`record`, `service`), sessions over a WebSocket (`server`, `line`, `wire`),
adapters for other protocols, and the policy as a tool. What may move is decided in `core.safety` and `core.session`.

The gateway starts with these modules: what needs the extra `physical` is imported when a policy is.
"""
