"""Text models on this machine: a llama.cpp server in a process of its own, one per model.

engine   starts, watches and counts     (parent)
child    the server process             (child: `python -m atoll.engines.llamacpp.child`)
dialect  canonical requests to llama.cpp's, its streams back to canonical chunks
schemas  JSON Schemas to grammars
tools    tool calls for models that were not trained to make them
gguf     header of a weight file
memory   what a model needs and what there is
"""
