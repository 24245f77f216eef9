"""The verbs that compute what this repository states, and their words: reproduce, demonstrate.

Help, lists and wrong words are answered without importing torch.
"""

import json
import shlex
from pathlib import Path

from sigexp.usage import Parser, WrongCommand


def reproduce(words: list[str]) -> int:
    """`sigexp reproduce [NAME...]`: run what claims need, and check them."""
    parser = Parser(prog="sigexp reproduce", description="Run what the claims of conf/claims need, and check them.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="EXPERIMENT or EXPERIMENT/CLAIM; by default all")
    parser.add_argument("--quick", action="store_true", help="smaller budgets and their own, looser bounds; one seed")
    parser.add_argument("--seeds", type=int, metavar="N", help="seed and dataset.seed 0..N-1 (3; 1 with --quick)")
    parser.add_argument(
        "-j", "--jobs", type=int, metavar="N", help="runs side by side (one a core; one in all where there is a GPU)"
    )
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="folder of the runs and of claims.json")
    parser.add_argument("--gallery", type=Path, metavar="DIR", help="write a page for every experiment into DIR")
    parser.add_argument("--list", action="store_true", help="show what would be run, and stop")
    given = parser.parse_intermixed_args(words)
    seeds = given.seeds if given.seeds is not None else 1 if given.quick else 3
    if seeds < 1:
        raise WrongCommand(f"--seeds {seeds}: expected at least 1")
    if given.jobs is not None and given.jobs < 1:
        raise WrongCommand(f"--jobs {given.jobs}: expected at least 1")
    from sigexp.report import claims, claims_file

    chosen = claims_file.select(given.names, quick=given.quick)
    if given.list:
        print(claims.listing(chosen, seeds))
        return 0
    from sigexp import reproduce as reproduction

    output = given.output or Path("outputs/reproduce")
    said = shlex.join(["sigexp", "reproduce", *words])
    code = reproduction.reproduce(
        chosen, seeds=seeds, quick=given.quick, output=output, command=said, at_once=given.jobs
    )
    if given.gallery:
        from sigexp import gallery

        found = json.loads((output / "claims.json").read_text(encoding="utf-8"))
        for path in gallery.write(found, given.gallery):
            print(path)
    return code


def demonstrate(words: list[str]) -> int:
    """`sigexp demonstrate [NAME...]`: compute the pages of what needs no training."""
    parser = Parser(prog="sigexp demonstrate", description="Compute the lecture's demonstrations, a page each.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="what to compute; by default all")
    parser.add_argument("--gallery", type=Path, metavar="DIR", help="where pages go (outputs/gallery)")
    parser.add_argument("--list", action="store_true", help="show what there is, and stop")
    given = parser.parse_intermixed_args(words)
    if given.list:
        from sigexp.demonstrations import DEMONSTRATIONS

        width = max(map(len, DEMONSTRATIONS))
        print("\n".join(f"{name:<{width}}  {meaning}" for name, meaning in DEMONSTRATIONS.items()))
        return 0
    from sigexp import demonstrate as demonstrations

    for path in demonstrations.write(demonstrations.select(given.names), given.gallery or Path("outputs/gallery")):
        print(path)
    return 0
