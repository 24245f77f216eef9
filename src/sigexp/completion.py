"""`sigexp completion bash|zsh|fish`: verbs, choices and fields at TAB.

Hydra's own completion (`-sc install=SHELL`) composes the config in every TAB and takes seconds. This one reads
names out of conf/, the user's ./conf, and config.py as text, and imports neither Hydra nor torch. The shells' scripts
ask `sigexp completion --candidates LINE` and get a line for each candidate: the word, a tab, what it means.
"""

import ast
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

from sigexp import catalog
from sigexp.usage import Parser, WrongCommand
from sigexp.verbs import VERBS

SHELLS = ("bash", "zsh", "fish")
Candidates = Iterator[tuple[str, str]]  # the word that stands in the line's last one's place, what it means
HARMLESS = re.compile(r"[\w./=,:+~@-]+")  # nothing else is put on anybody's command line
CHOICES = ("experiment", "model", "dataset", "search", "trainer")
VALUES = {  # beside those that config.py checks
    "device": ("auto", "cpu", "cuda", "mps"),
    "dataset.images": ("photographs", "cifar10"),
    "dataset.digits": ("synthetic", "mnist", "fashion_mnist"),
    "dataset.scale": ("half", "full"),
    "dataset.size": ("stream",),
    "search.patience": ("auto", "null"),
    "trainer.processes": ("auto",),
}
OPTIONS = {
    "": ("-m", "--multirun", "--cfg", "--info", "--config-dir", "--help", "--version", "--hydra-help"),
    "list": ("--json",),
    "preview": ("-o", "--output"),
    "rerun": ("-m", "--cfg", "--trust"),
    "replay": ("--trust",),
    "apply": ("-o", "--output", "--simulate", "--npy", "--overwrite", "--max-megapixels", "--device", "--trust"),
    "compare": ("--csv", "--html", "--replays"),
    "report": ("-o", "--output"),
    "board": ("--port",),
    "reproduce": ("--quick", "--seeds", "-j", "--jobs", "-o", "--output", "--gallery", "--list"),
    "demonstrate": ("--gallery", "--list"),
}
TAKES_SETTINGS = {"preview": 0, "rerun": 1, "replay": 1}  # verbs, and the words before their settings


def completion(words: list[str]) -> int:
    """Carry out the verb."""
    parser = Parser(
        prog="sigexp completion",
        description="Print a script that makes the shell complete verbs, experiments, models and fields.",
        epilog='bash: eval "$(sigexp completion bash)" in ~/.bashrc. zsh: the same with zsh in ~/.zshrc. '
        "fish: sigexp completion fish > ~/.config/fish/completions/sigexp.fish",
    )
    parser.add_argument("shell", nargs="?", metavar="|".join(SHELLS))
    parser.add_argument("--candidates", metavar="LINE", help="what could stand at the end of a line; for the scripts")
    given = parser.parse_args(words)
    if given.candidates is not None:
        for word, meaning in candidates(given.candidates):
            if HARMLESS.fullmatch(word):
                print(f"{word}\t{''.join(c if c.isprintable() else ' ' for c in meaning)}")
        return 0
    if given.shell not in SHELLS:
        which = "" if given.shell is None else f" {given.shell}"
        raise WrongCommand(f"completion{which}: give bash, zsh or fish")
    print((Path(__file__).with_name("shells") / f"completion.{given.shell}").read_text(encoding="utf-8"), end="")
    return 0


def candidates(line: str) -> Candidates:
    """What could stand in place of the last word of a command line, which may be empty."""
    words = line.split()
    if not line or line[-1].isspace():
        words.append("")
    while words and Path(words[0]).name != "sigexp":  # what stands before the command, such as NAME=VALUE
        words.pop(0)
    if len(words) < 2:
        return
    *before, word = words[1:]
    verb = before[0] if before and before[0] in VERBS else ""
    for found, meaning in of_verb(verb, before, word):
        if found.startswith(word):
            yield found, meaning


def of_verb(verb: str, before: list[str], word: str) -> Candidates:
    """Words that can follow `before`; some do not begin with `word`."""
    if before and before[-1] == "--cfg":
        yield from ((name, "") for name in ("job", "hydra", "all"))
        return
    if word.startswith("-"):
        yield from ((option, "") for option in (*OPTIONS.get(verb, ()), "--help"))
        return
    if not before:
        yield from ((name, meaning) for name, (_, meaning) in VERBS.items())
    if verb == "list":
        yield from ((kind, "") for kind in catalog.KINDS)
    elif verb == "completion":
        yield from ((shell, "") for shell in SHELLS)
    elif verb == "reproduce":
        yield from ((choice.name, choice.description) for choice in catalog.choices("experiment"))
    elif verb == "demonstrate":
        from sigexp.demonstrations import DEMONSTRATIONS

        yield from DEMONSTRATIONS.items()
    elif not verb or len(before) - 1 >= TAKES_SETTINGS.get(verb, len(before)):
        yield from settings(word, {key: value for key, _, value in (one.partition("=") for one in before)})


def settings(word: str, chosen: Mapping[str, str]) -> Candidates:
    """NAME= and NAME=VALUE; of several values, the last one."""
    sign = word[: len(word) - len(word.lstrip("+~"))]
    name, equals, value = word.removeprefix(sign).partition("=")
    if equals:
        others = value[: value.rfind(",") + 1]
        for found, meaning in values(name, chosen):
            yield f"{sign}{name}={others}{found}", meaning
        return
    groups: dict[str, str] = {}
    for found, meaning in fields(chosen):
        head, dot, _ = found.partition(".")
        if dot and "." not in name:
            groups[f"{head}."] = f"fields of the {head}"
        elif "." in name or not dot:
            groups[f"{found}="] = meaning
    yield from ((f"{sign}{found}", meaning) for found, meaning in groups.items())


def values(name: str, chosen: Mapping[str, str]) -> Candidates:
    """Values of a setting, where they can be counted."""
    if name in CHOICES:
        models = next((c.models for c in catalog.choices("experiment") if c.name == chosen.get("experiment")), ())
        found = {choice.name: choice.description for choice in catalog.choices(name)}
        first = [model for model in models if model in found] if name == "model" else []
        yield from ((choice, found[choice]) for choice in first or found)
        return
    known = schema()
    for value in VALUES.get(name, known.options.get(name, ("true", "false") if name in known.flags else ())):
        yield value, ""


def fields(chosen: Mapping[str, str]) -> Candidates:
    """Every field that can be set, with its comment in the file that defines it."""
    for group in CHOICES:
        yield group, f"choose the {group}"
    yield from ((name, meaning) for name, meaning in schema().fields.items() if name not in ("models", *CHOICES))
    experiment = text_of("experiment", chosen.get("experiment", ""))
    for group in ("dataset", "model"):
        default = re.search(rf"^\s*- override /{group}: *([\w.-]+)", experiment, re.MULTILINE)
        name = chosen.get(group) or (default[1] if default else "linear" if group == "model" else "")
        text = text_of(group, name)
        lines = re.findall(r"^([A-Za-z]\w*):[^#\n]*(?:#\s*(.*))?$", text, re.MULTILINE) if text else []
        for field, comment in lines or [(key, "") for key in inline(experiment, group)]:
            yield f"{group}.{field}", comment.strip()


def text_of(group: str, name: str) -> str:
    """A file of conf, the packaged one or else the user's, '' where there is none."""
    if not re.fullmatch(r"[\w.-]+", name):
        return ""
    for conf in (catalog.conf_dir(), catalog.user_conf()):
        path = conf / group / f"{name}.yaml" if conf else None
        if path and path.is_file():
            return path.read_text(encoding="utf-8", errors="replace")
    return ""


def inline(experiment: str, group: str) -> list[str]:
    """The fields of a dataset or model that stands inside the experiment's own file."""
    if f"\n{group}:" not in experiment:
        return []
    import yaml

    try:
        node = yaml.safe_load(experiment)[group]
        return [str(key) for key in node if not str(key).startswith("_")]
    except (yaml.YAMLError, TypeError, KeyError):
        return []


class Schema:
    """config.py's dataclasses, read as text: importing them takes Hydra.

    fields: 'trainer.batch_size' -> its comment. flags: those that are true or false. options: those that `_one_of`
    checks, with their words.
    """

    def __init__(self, source: str) -> None:
        self.fields: dict[str, str] = {}
        self.flags: set[str] = set()
        self.options: dict[str, tuple[str, ...]] = {}
        self.lines = source.splitlines()
        tree = ast.parse(source)
        self.classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
        self.add("", "Config")
        for call in ast.walk(tree):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "_one_of":
                name, _, options = call.args
                if isinstance(name, ast.Constant):
                    self.options[str(name.value)] = tuple(ast.literal_eval(options))

    def add(self, prefix: str, name: str) -> None:
        """The fields of a dataclass, and of those inside it."""
        for node in self.classes[name].body:
            if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
                continue
            field, kind = f"{prefix}{node.target.id}", ast.unparse(node.annotation)
            if kind in self.classes:
                self.add(f"{field}.", kind)
            elif not node.target.id.startswith("_"):
                self.fields[field] = self.lines[node.lineno - 1].partition("# ")[2]
                if kind == "bool":
                    self.flags.add(field)


@cache
def schema() -> Schema:
    return Schema(Path(__file__).with_name("config.py").read_text(encoding="utf-8"))
