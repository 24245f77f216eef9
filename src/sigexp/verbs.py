"""The verbs of the command line, and where each is carried out: a function of its words that returns the exit code.

A verb's module is imported when it is asked for, so that those which only read stay quick.
"""

from importlib import import_module

VERBS = {  # name -> function, meaning
    "list": ("sigexp.showing.list_choices", "what can be chosen"),
    "preview": ("sigexp.showing.preview", "a picture of the data before any training"),
    "resume": ("sigexp.resuming.resume", "go on with an interrupted run, from its last checkpoint"),
    "rerun": ("sigexp.rerunning.rerun", "the same run again, or with a change"),
    "replay": ("sigexp.replaying.replay", "train the best line's recorded schedule alone"),
    "apply": ("sigexp.applying.command", "the learned model on your own files"),
    "compare": ("sigexp.reading.compare", "a table over runs"),
    "report": ("sigexp.reading.report", "write report.html again"),
    "inspect": ("sigexp.inspecting.inspect", "what a run's folder holds, executing nothing"),
    "board": ("sigexp.showing.board", "TensorBoard on localhost"),
    "reproduce": ("sigexp.checking.reproduce", "run what the claims need, and check them"),
    "demonstrate": ("sigexp.checking.demonstrate", "the demonstrations that need no training"),
    "doctor": ("sigexp.doctor.doctor", "versions, devices, peak arithmetic, what is missing"),
    "completion": ("sigexp.completion.completion", "a script for bash, zsh or fish"),
}


def carry_out(verb: str, words: list[str]) -> int:
    """Import the verb's function and call it with the words behind the verb."""
    module, _, name = VERBS[verb][0].rpartition(".")
    return int(getattr(import_module(module), name)(words))
