"""Durable long work: a run is a chain of stages that goes on where it stopped, whatever stopped it.

`desk` takes orders and tells how they stand, `worker` is the process that carries them out, `artifacts` are what it
leaves behind. DBOS keeps what was ordered and how far it is, in a database; finished steps are folders:

    runs/<run>/<step>/            what the step makes; finished when it holds artifact.json
    runs/<run>/<step>.jsonl       its figures, as they came
    artifacts/<digest>.json       where the artifact of that digest lies
"""
