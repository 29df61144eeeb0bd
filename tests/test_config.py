"""Configs are read strictly; every refusal says which field, what was found, what is allowed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from malt_jax import config, settings
from malt_jax.errors import UserError


def test_the_defaults_are_the_published_method():
    default = config.Config()
    roles = default.pipeline.roles
    assert [role.name for role in roles] == ["generator", "verifier", "refiner"]
    assert [role.train for role in roles] == ["sft", "sft+dpo", "sft+dpo"]
    assert all(role.branch == 3 and role.temperature == 0.3 for role in roles)
    assert default.search.threshold == 0.5 and default.search.backup == "mean"
    assert default.train.dpo.beta == 0.2 and default.train.sft.batch_size == 8


def test_flags_go_over_yaml_over_defaults(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("seed: 3\ntask: {name: gsm8k, num_train: 5}\n")
    made = config.load(
        str(path), ["--task.num-train", "7", "--pipeline.roles.1.branch=5", "--quiet"]
    )
    assert (made.seed, made.task.name, made.task.num_train) == (3, "gsm8k", 7)
    assert [role.branch for role in made.pipeline.roles] == [3, 5, 3]
    assert made.quiet


def test_a_config_survives_being_written_and_read(tmp_path):
    import yaml

    made = config.from_dict({"ablations": [{"name": "max", "set": {"search.backup": "max"}}]})
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(settings.to_dict(made)))
    assert config.load(str(path)) == made


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--sed", "1"], ["sed", "unknown", "seed"]),
        (["--task.num-trian", "1"], ["num_trian", "num_train"]),
        (["--seed", "many"], ["seed", "whole number", "many"]),
        (["--seed", "-1"], ["seed", "-1", "0 to"]),
        (["--seed", "1e400"], ["seed"]),
        (["--seed", "99999999999999999999999"], ["seed", "64-bit"]),
        (["--rounds", "0"], ["rounds", "1 to 100"]),
        (["--sharing", "share"], ["sharing", "adapters, shared"]),
        (["--search.threshold", ".nan"], ["threshold", "finite"]),
        (["--search.threshold", "1.0"], ["search.threshold", "0 to below 1"]),
        (["--search.shard", "5/4"], ["shard", "1 <= i <= k"]),
        (["--train.dpo.beta", ".inf"], ["beta", "finite"]),
        (["--train.sft.optim.learning-rate", "-1"], ["train.sft.optim.learning_rate"]),
        (["--pipeline.roles.9.branch", "2"], ["roles.9", "3 entries"]),
        (["--pipeline.roles.0.branch", "0"], ["pipeline.roles.0.branch", "1 to 64"]),
        (["--pipeline.roles", "[]"], ["pipeline.roles", "at least one"]),
        (["--task", "gsm8k"], ["task", "mapping"]),
        (["--task.name.x", "1"], ["name"]),
        (["stray"], ["stray", "unexpected"]),
        (["--task.name", "a\0b"], ["task.name", "NUL"]),
        (["--quiet", "perhaps"], ["quiet", "true or false"]),
    ],
)
def test_a_wrong_field_is_refused_with_place_finding_and_mend(flags, words):
    with pytest.raises(UserError) as error:
        config.load(None, flags)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "a: [1",
        "- 1",
        "a: 1\na: 2",
        "\x00",
        "seed: !!python/object:os.system {}",
        "[" * 3000,
        "&a [*a]",
    ],
)
def test_a_broken_yaml_file_is_refused_by_name(tmp_path, text):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"broken\.yaml"):
        config.load(str(path))


@given(st.binary(max_size=200))
def test_any_bytes_give_a_config_or_a_user_error(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("fuzz") / "c.yaml"
    path.write_bytes(data)
    try:
        config.load(str(path))
    except UserError as error:
        assert str(error)


def test_every_field_has_a_help_text():
    def visit(cls):
        docs = settings.field_docs(cls)
        for name, hint in settings.field_types(cls).items():
            if hasattr(hint, "__dataclass_fields__"):
                visit(hint)
            else:
                assert name in docs, f"{cls.__name__}.{name}"

    visit(config.Config)
    for cls in (config.RoleConfig, config.SystemConfig, config.Ablation):
        visit(cls)


def test_aliases_are_read(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("train: {sft: &both {epochs: 7}, dpo: *both}\n")
    train = config.load(str(path)).train
    assert train.sft.epochs == train.dpo.epochs == 7
