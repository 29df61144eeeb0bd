"""`malt plan`: what a run will cost, before it starts."""

from __future__ import annotations

from malt_jax.commands.command import Command, Invocation, Option


def run(invocation: Invocation) -> None:
    import json
    import sys

    from malt_jax.commands.launch import check_lengths, print_table, read_config
    from malt_jax.environment import leave_devices_free

    options = invocation.options
    if options.topology:
        leave_devices_free()
    from malt_jax.planning.chips import find_target
    from malt_jax.planning.plan import plan_bases
    from malt_jax.planning.specs import find_spec
    from malt_jax.planning.table import tables

    config = read_config(invocation)
    found = {base: find_spec(base.path, base.revision) for base in config.bases}
    target = find_target(options.topology, compiles=not options.estimate)
    specs = {base: spec for base, (spec, _) in found.items()}
    check_lengths(config, specs)

    def note(name: str) -> None:
        if not config.quiet:
            print(f"{name}: {'compiled' if target.devices else 'counted'}", file=sys.stderr)

    plan = plan_bases(config, specs, target, whole=options.whole, on_program=note)
    for one, (_, source) in zip([plan, *plan.get("others", [])], found.values(), strict=True):
        one["model"]["spec"] = source
    for table in tables(plan):
        print_table(table)
    if options.json:
        print(json.dumps(plan))


COMMAND = Command(
    name="plan",
    summary="what the run will cost, before it starts",
    about="Prints parameters, completions, tokens and bytes per device. With --topology it "
    "compiles every program for a TPU slice or GPU, on this machine: memory and time of each.",
    run=run,
    options=(
        Option("--topology", "Devices: v5p:2x2x4 (needs libtpu), h100:1 (plan-gpu).", "NAME"),
        Option("--estimate", "Compile nothing; estimate by formula."),
        Option("--whole", "Compile all layers, not two depths of them."),
        Option("--json", "Print one JSON object as the last line."),
    ),
    fields=(
        "model.path",
        "task.num_train",
        "mesh.fsdp",
        "mesh.tensor",
        "train.full",
    ),
    computes=True,
    examples=(
        "malt plan --config quickstart",
        "malt plan --config mine.yaml --topology v5p:2x2x4 --json",
    ),
)
