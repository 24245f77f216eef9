"""The verbs of the command line, and where each is carried out: a function of its words that returns the exit code.

A verb's module is imported when it is asked for, so that those which only read stay quick.
"""

from importlib import import_module

VERBS = {
    "list": "sigexp.showing.list_choices",
    "preview": "sigexp.showing.preview",
    "rerun": "sigexp.rerunning.rerun",
    "replay": "sigexp.replaying.replay",
    "apply": "sigexp.applying.command",
    "compare": "sigexp.reading.compare",
    "report": "sigexp.reading.report",
    "inspect": "sigexp.inspecting.inspect",
    "board": "sigexp.showing.board",
    "reproduce": "sigexp.checking.reproduce",
    "demonstrate": "sigexp.checking.demonstrate",
    "doctor": "sigexp.doctor.doctor",
    "completion": "sigexp.completion.completion",
}


def carry_out(verb: str, words: list[str]) -> int:
    """Import the verb's function and call it with the words behind the verb."""
    module, _, name = VERBS[verb].rpartition(".")
    return int(getattr(import_module(module), name)(words))
