"""The same search by sigexp and by what one would use instead: time, memory, and the loss that comes out.

    python -m benchmarks.peers [--problems gaussian,bayer,spikes] [--peers ray,optuna,joblib] [--seeds 3]
        [--quick] [--resume] [--output benchmarks/results/peers.md]

It needs `pip install -e '.[peers]'`.

ray: Ray Tune's population based training; six members, twelve rounds, actors reused, perturbation by 0.8 or 1.25 as
    here. Synchronous, because the asynchronous one sets a member that it replaces back to an earlier round, and trains
    several times the budget. The examples lie in Ray's object store. Against search=pbt, with the same first members.
optuna: TPE with the successive-halving pruner, factor 3; a trial is at most 13 of 27 parts of the budget long, as the
    last one of search=halving, and trials begin until the budget is spent. Against search=halving, and search=automlp
    with one survivor, which trains for as large a part of the budget.
joblib: a Hydra app under `-m hydra/launcher=joblib`, six jobs with random learning rates and batch sizes. Against
    search=random, with the same members. Optuna's and Hydra's processes map the examples from one file each, which is
    written before the search; neither tool has another way to hand them out.

Every side trains the same number of member-samples on the same examples, with the same optimizer, ranges, schedule,
initial weights, minibatches where members are the same, and validation set, scored after every round; the best model
by validation loss is judged on the same test set. On `bayer` the round's training loss takes the place of the
validation loss, as in conf/tune: there is one validation photograph, and it prefers the unfinished. A peer's loop is
plain PyTorch with torch.optim's fused optimizers, glibc's allocator set as sigexp sets it (`machine.tune_allocator`),
in as many processes with one thread as there are cores or in one process with all threads, NCHW or channels_last,
whichever is measured to be quickest first. The model is that of sigexp's conf; for `gaussian` that has a convolution by
FFT which is sigexp's own, and the peers are run with torch's `nn.Conv2d` and with it.

start-up: from the start of the process to the first step: imports, drawing the data, processes, calibration.
training: from the first step to the last one's end, by the wall clock, validation and whatever the tool does between
    two steps included, such as Ray's new actor for a member that was replaced. `steps` is the part of it that the plain
    loop and validation take, in the processes' mean: what a tool without any cost of its own would need. Of sigexp,
    `steps` leaves validation out, and calibration is how long it looked for the quickest way, a part of start-up.
peak: the largest sum over the process tree of proportional set sizes (memory shared by processes counts once),
    looked at twice a second.
holds: training takes at most a fourth of the peer's, and the test loss is at most the peer's plus the standard
    deviation of the difference over seeds, or plus a thousandth, which is rounding: the members of joblib and of
    search=random are the same. `strict` is the ratio of the peer's `steps` to our training and calibration.

Each run is a process tree of its own, and sides take turns seed by seed. What is done is kept, a line of JSON each,
beside the output; `--resume` goes on with it.
"""
