"""Configs and flags that are wrong by themselves, or for this model and these questions."""

from __future__ import annotations

from wrong_inputs.world import LONG, ablation, case, config, flag, quickstart


def _aliases() -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    return "\n".join(lines)


CONFIGS = (
    case(
        "config: no such file", lambda w: ["run", "--config", str(w.folder / "no.yaml")], "no.yaml"
    ),
    case("config: a folder", lambda w: ["run", "--config", str(w.folder)], "cannot be read"),
    case("config: Latin-1", config("task: {name: \xe9}".encode("latin-1")), "UTF-8"),
    case("config: NUL byte", config(b"seed: 1\0"), "config.yaml"),
    case("config: a list", config("- 1\n"), "mapping"),
    case("config: torn YAML", config("task: {name"), "config.yaml:", "not valid YAML"),
    case("config: a key twice", config("seed: 1\nseed: 2\n"), ":2", "twice"),
    case("config: aliases that multiply", config(_aliases()), "config.yaml:", "alias"),
    case("config: an alias of itself", config("ablations: &a [*a]\n"), "config.yaml:", "alias"),
    case("config: a Python object", config("seed: !!python/name:os.system\n"), "not valid YAML"),
    case("config: nested 2,000 deep", config("[" * 2000), "config.yaml"),
    case("config: unknown field", config("sead: 1\n"), "sead", "seed"),
    case("config: a date for a number", config("seed: 2020-01-01\n"), "seed", "whole number"),
    case("config: NaN", flag("--train.sft.optim.learning-rate", ".nan"), "learning_rate", "finite"),
    case("config: infinity", flag("--search.softness", ".inf"), "softness", "finite"),
    case("config: negative", flag("--task.num-train", "-3"), "num_train", "1 or more"),
    case(
        "config: margins without an offset",
        flag("--data.margins", "gap"),
        "train.dpo.offset",
        "without the other",
    ),
    case(
        "config: an offset without margins",
        flag("--train.dpo.offset", "1.0"),
        "data.margins",
        "without the other",
    ),
    case(
        "config: confidence of a maximum",
        flag("--data.weights", "confidence", "--search.backup", "max"),
        "search.backup",
        "mean",
    ),
    case(
        "config: full training of a rounded base",
        flag("--train.full", "true", "--model.quantize", "int8"),
        "model.quantize",
        "train adapters",
    ),
    case(
        "config: weights rounded twice",
        flag("--sampler.weights", "int8", "--model.quantize", "int8"),
        "sampler.weights",
        "model.quantize",
    ),
    case("config: zero rounds", flag("--rounds", "0"), "rounds", "1 to 100"),
    case("config: 10^30", flag("--train.sft.batch-size", "1" + "0" * 30), "batch_size", "64-bit"),
    case("config: 10^5000", flag("--seed", "1" + "0" * 5000), "seed"),
    case("config: 1e999", flag("--train.dpo.beta", "1e999"), "beta", "finite"),
    case("config: text for a number", flag("--seed", "ten"), "seed", "whole number"),
    case("config: true for a number", flag("--seed", "true"), "seed", "whole number"),
    case("config: negative seed", flag("--seed", "-1"), "seed", "0 to 2^32"),
    case("config: an unknown choice", flag("--sharing", "adapter"), "sharing", "adapters"),
    case("config: no roles", config("pipeline: {roles: []}\n"), "roles", "none"),
    case(
        "config: a role twice",
        config("pipeline: {roles: [{name: a}, {name: a}]}\n"),
        "roles",
        "twice",
    ),
    case("config: a role named ../x", flag("--pipeline.roles.0.name", "../x"), "roles.0.name"),
    case(
        "config: an unknown placeholder",
        flag("--pipeline.roles.0.template", "{question} {second}"),
        "roles.0.template",
        "second",
    ),
    case(
        "config: phases in another order",
        flag("--pipeline.roles.1.train", "kto+sft"),
        "pipeline.roles.1.train",
        "sft, dpo, kto, pg",
    ),
    case("config: KTO on one completion", flag("--train.kto.batch-size", "1"), "kto", "2 or more"),
    case("config: a gap of 2", flag("--data.min-gap", "2"), "data.min_gap", "0 to 1"),
    case(
        "config: an unknown credit rule",
        config("ablations: [{name: a, rule: bothh}]\n"),
        "ablations.a",
        "bothh",
        "Did you mean 'both'",
    ),
    case(
        "config: a verdict that names no reader",
        flag("--pipeline.roles.1.verdict", "often"),
        "roles.1.verdict",
        "module:attribute",
    ),
    case(
        "config: a verdict reader that is not there",
        flag("--pipeline.roles.1.verdict", "nowhere:read"),
        "roles.1.verdict",
        "nowhere",
    ),
    case(
        "config: measured on a validation split of nothing",
        flag("--eval.split", "validation"),
        "eval.split",
        "task.num_validation",
    ),
    case(
        "config: all training questions set aside",
        flag("--task.num-validation", "20000"),
        "task.num_validation",
        "lower",
    ),
    case(
        "thinking: a system message without a chat template",
        flag("--pipeline.roles.1.system", "Be brief."),
        "roles.1.system",
        "no chat template",
    ),
    case(
        "thinking: an argument without a chat template",
        flag("--pipeline.roles.0.chat-template-kwargs.enable-thinking", "false"),
        "roles.0.chat_template_kwargs",
        "no chat template",
    ),
    case(
        "thinking: a budget of a model without thoughts",
        flag("--pipeline.roles.0.thinking.budget", "4"),
        "roles.0.thinking.budget",
        "writes no thoughts",
    ),
    case(
        "thinking: a budget that leaves no room for the answer",
        flag("--pipeline.roles.0.thinking.budget", "8"),
        "roles.0.thinking.budget",
        "below max_new_tokens",
    ),
    case(
        "thinking: a conclusion that nothing writes",
        flag("--pipeline.roles.0.thinking.conclusion", "So"),
        "roles.0.thinking.conclusion",
        "budget",
    ),
    case(
        "roles: an unknown field of a role's training",
        flag("--pipeline.roles.1.training.sft.epoch", "2"),
        "roles.1.training.sft.epoch",
        "epochs",
    ),
    case(
        "roles: a value out of range in a role's training",
        flag("--pipeline.roles.1.training.dpo.beta", "-1"),
        "roles.1.training.dpo.beta",
        "above 0",
    ),
    case(
        "roles: all weights of one role",
        flag("--pipeline.roles.1.training.full", "true"),
        "roles.1.training.full",
        "train.full",
    ),
    case(
        "roles: training of their own in shared weights",
        flag("--pipeline.roles.1.training.sft.epochs", "2", "--sharing", "shared"),
        "roles.1.training",
        "sharing",
    ),
    case(
        "config: siblings held back of two",
        flag(
            "--search.spare",
            "1",
            *(word for i in range(2) for word in (f"--pipeline.roles.{i}.branch", "2")),
        ),
        "search.spare",
        "branch",
    ),
    case("config: shard 3/2", flag("--search.shard", "3/2"), "shard", "i/k"),
    case("config: an unknown kernel", flag("--sampler.attention", "cuda"), "attention", "pallas"),
    case("config: falling buckets", flag("--sampler.prefix-buckets", "64,32"), "prefix_buckets"),
    case("config: an unknown system", flag("--eval.systems", "sa,magic"), "magic"),
    case("config: an unknown baseline", flag("--eval.baseline", "best"), "eval.baseline"),
    case(
        "config: more new tokens than context",
        flag("--pipeline.roles.0.max-new-tokens", "4096"),
        "roles.0.max_new_tokens",
    ),
    case("config: an unknown task", flag("--task.name", "gsm9k"), "task.name", "gsm8k"),
    case("config: a task that cannot be imported", flag("--task.name", "no_such:T"), "task.name"),
    case("config: code is not allowed", flag("--task.name", "mbpp"), "allow_code"),
    case("config: an unknown grader", flag("--task.grader", "nose"), "nose"),
    case("config: an unknown flag", flag("--task.nun-train", "3"), "nun", "num_train"),
    case("config: a word too many", lambda w: ["run", "now", *w.command()[1:]], "now"),
    case("no such command", lambda w: ["rum"], "rum", "run"),
    case("later: a shard without questions", flag("--search.shard", "1/100"), "search.shard"),
    case("later: a mesh of seven devices", flag("--mesh.data", "7"), "mesh", "7"),
    case("later: a tracker that is not there", flag("--trackio", "true"), "trackio"),
    case("later: a grader nobody asks", quickstart("--task.grader", "set"), "task.grader"),
    case("later: a revision of no hub", quickstart("--model.revision", "x"), "revision"),
    case("later: a model of a variant", ablation(model__path="/no/such"), "ablations.a", "/no"),
    case(
        "later: a turn of a variant",
        ablation(pipeline__roles__0__max_new_tokens=4096),
        "ablations.a",
        "max_new_tokens",
    ),
    case(
        "later: a role named as a folder of storage",
        flag("--pipeline.roles.0.name", "_x"),
        "roles.0.name",
    ),
    case("later: a model path of 300 letters", flag("--model.path", LONG), "model.path"),
    case(
        "later: a question path of 300 letters",
        flag("--task.train-path", f"{LONG}.jsonl"),
        "task.train_path",
    ),
)
