"""What `sigexp --help` says, and how the verbs' words are parsed."""

import argparse
from typing import Any

HELP = """\
sigexp: learning in signal and image processing, configured by YAML

Usage
  sigexp experiment=bayer model=deep                   one run
  sigexp -m experiment=bayer model=linear,deep seed=0,1,2   every combination
  sigexp VERB ...                                      see below

Verbs
  list [experiments|datasets|models|searches] [--json]   what can be chosen
  preview experiment=NAME [-o FILE]     a picture of inputs and targets before any training
  resume RUN                            go on with a run that was interrupted or killed, from its last checkpoint
  rerun RUN [NAME=VALUE ...]            the same run again, or with a change; refuses where its conf has changed
  replay RUN                            train the best line's recorded hyperparameter schedule alone
  apply RUN FILE... -o OUT [--simulate]  the learned model on your own pictures, arrays and sounds, of any size;
                                        several RUNs: side by side; `sigexp apply --help` says more
  compare RUN... [--csv] [--html FILE]  a table over runs: mean and 95 % interval over seeds, references beside;
                                        RUN is a run's folder, a folder of runs, a sweep's folder or a glob
  report RUN... [-o FILE]               write report.html again, from what lies in a run's folder
  inspect RUN                           what a run's folder holds, executing nothing of it
  board [DIR] [--port N]                TensorBoard on localhost for the runs in DIR (outputs)
  reproduce [NAME...] [--quick] [--seeds N] [-j N] [-o DIR] [--list] [--gallery DIR]
                                        run what the claims of conf/claims need and check them; NAME is an
                                        EXPERIMENT or EXPERIMENT/CLAIM, by default all; --list only lists;
                                        --gallery writes a page for every experiment; -j N: N runs side by side
  demonstrate [NAME...] [--list] [--gallery DIR]
                                        compute the demonstrations that need no training (aliasing, Gabor banks,
                                        ...), a page each in DIR/demonstrations (outputs/gallery)
  doctor                                versions, devices, peak GFLOP/s, and what is missing
  completion bash|zsh|fish              a script that makes the shell complete all of these: eval "$(sigexp
                                        completion bash)"; sigexp completion fish | source

Settings people change most (any field of the config can be set: sigexp experiment=NAME --cfg job)
  experiment=NAME  model=NAME           what is learned, and by what
  search=automlp|halving|pbt|optuna|random|fixed|lecture
                                        how hyperparameters are found; lecture: the lecture's settings
  search.max_samples=N                  the budget, in member-samples of the whole search
  dataset.size=N|stream                 a fixed training set, or fresh examples for ever
  dataset.images=photographs|cifar10|DIR   dataset.digits=synthetic|mnist|fashion_mnist|DIR
  trainer.optimizer.name=sgd|adam|adamw  trainer.optimizer.lr=X  trainer.batch_size=N
  footprint=N                           kernel size
  seed=N  dataset.seed=N                initial weights and search; the data
  device=auto|cpu|cuda  outputs=DIR

Hydra's options
  -m, --multirun        sweep over comma-separated values
  --cfg job, --info     show the composed config
  --config-dir DIR      further YAML files beside your own ./conf
  --hydra-help          all of them

--trust PREFIX lets a folder that rerun, replay or apply reads name targets of your own below PREFIX.
NO_COLOR=1 leaves colours out; output that is piped is plain.

Exit codes: 0 done, 1 internal error, a claim that fails or something that doctor misses, 2 wrong input,
3 every member diverged, 4 disk or permission, 130 interrupted, 143 terminated
"""

FIRST = """\
sigexp: learning in signal and image processing, configured by YAML

  sigexp list                            what can be chosen
  sigexp experiment=bayer model=deep     one run
  sigexp board                           TensorBoard on the runs

sigexp --help says more
"""

TRUST = "let the folder's config name targets (_target_) below PREFIX, which it may else not; they are imported"


class WrongCommand(ValueError):
    """A wrong command line; the message is the whole explanation."""


class Parser(argparse.ArgumentParser):
    """argparse, with errors in the form of all others; verbatim: description and epilog keep their lines."""

    def __init__(self, *, verbatim: bool = False, **settings: Any):
        shape = argparse.RawDescriptionHelpFormatter if verbatim else argparse.HelpFormatter
        super().__init__(formatter_class=shape, **settings)

    def error(self, message: str) -> Any:
        usage = " ".join(self.format_usage().split())
        raise WrongCommand(f"{message}; {usage}")
