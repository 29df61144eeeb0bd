"""Configs are read strictly; every refusal says which field, what was found, what is allowed."""

import hashlib

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from malt_jax import config
from malt_jax.config import fields, reading
from malt_jax.config.export import check_repository
from malt_jax.config.reading import to_dict
from malt_jax.errors import UserError
from malt_jax.storage import config_file


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
    path.write_text(yaml.safe_dump(reading.to_dict(made)))
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
        docs = fields.field_docs(cls)
        for name, hint in fields.field_types(cls).items():
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


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"pipeline": {"roles": [{"name": "_x"}]}}, "pipeline.roles.0.name"),
        ({"pipeline": {"roles": [{"name": "é"}]}}, "pipeline.roles.0.name"),
        ({"pipeline": {"roles": [{"name": "a" * 101}]}}, "at most 64"),
        ({"pipeline": {"roles": [{"name": "question"}]}}, "a placeholder"),
        ({"pipeline": {"roles": [{"name": "other_1"}]}}, "a placeholder"),
        ({"pipeline": {"roles": [{"name": "star"}]}}, "baseline"),
        ({"pipeline": {"roles": [{"name": "A"}, {"name": "a"}]}}, "case only"),
        ({"pipeline": {"roles": [{"name": f"r{i}", "branch": 64} for i in range(20)]}}, "branch"),
        ({"pipeline": {"roles": [{"stop": [""]}]}}, "empty text"),
        ({"pipeline": {"roles": [{"stop": ["\ud800"]}]}}, "half a character"),
        ({"eval": {"trees": -1}}, "eval.trees"),
        ({"eval": {"baseline": "sa@²"}}, "eval.baseline"),
        ({"eval": {"baseline": "sa@" + "9" * 5000}}, "eval.baseline"),
        ({"eval": {"baseline": "sa@100000000"}}, "1024"),
        ({"search": {"shard": "²/³"}}, "search.shard"),
        ({"search": {"shard": "1/" + "9" * 5000}}, "search.shard"),
        ({"search": {"shard": "١/٣"}}, "search.shard"),
        ({"model": {"path": ""}}, "model.path"),
        *(
            ({"eval": {"extra": [{"name": name, "chain": ["generator:base"]}]}}, "eval.extra.0")
            for name in ("a/b", "my system", "", "a" * 150, "../../x", "ma@3", "Trees", "é")
        ),
        (
            {"eval": {"extra": [{"name": "a", "chain": ["a:base"], "votes": [100_000_000]}]}},
            "1024",
        ),
        *(
            ({"ablations": [{"name": name, "set": {"search.backup": "max"}}]}, "ablations.0.name")
            for name in ("é", "a" * 300, "")
        ),
        *(
            ({"ablations": [{"name": "a", "set": change}]}, "ablations.0.set")
            for change in (
                {},
                {"eval": 5},
                {"eval.extra": 5},
                {"output-dir": "x"},
                {"ablations": []},
                {"mirror": "m"},
            )
        ),
    ],
)
def test_what_would_be_refused_hours_later_is_refused_here(data, words):
    with pytest.raises(UserError) as error:
        config.from_dict(data)
    assert words in str(error.value)


@pytest.mark.parametrize("text", ["007", "12:30", "1e3", "2024-01-01", "~", "no", "{question}"])
def test_a_flag_of_text_is_taken_as_it_stands(text):
    flags = ["--model.revision", text, "--pipeline.roles.0.template", text]
    made = config.load(None, flags)
    assert (made.model.revision, made.pipeline.roles[0].template) == (text,) * 2
    if text != "~":  # a path that only a shell knows
        made = config.load(None, ["--output-dir", text, "--task.train-path", text])
        assert (made.output_dir, made.task.train_path) == (text,) * 2


def test_a_flag_of_optional_text_can_be_null():
    assert config.load(None, ["--sampler.cache-dir", "null"]).sampler.cache_dir is None


@pytest.mark.parametrize(
    ("flag", "stop"), [(",", (",",)), ("a,b", ("a,b",)), ("['a', ',']", ("a", ",")), ("7", ("7",))]
)
def test_a_lone_stop_text_is_one_text(flag, stop):
    assert config.load(None, ["--pipeline.roles.0.stop", flag]).pipeline.roles[0].stop == stop
    if not flag.startswith("["):
        data = {"pipeline": {"roles": [{"name": "a", "stop": flag}]}}
        assert config.from_dict(data).pipeline.roles[0].stop == stop


def test_flags_go_into_the_lists_of_earlier_flags():
    made = config.load(
        None, ["--pipeline.roles", "[{name: a}]", "--pipeline.roles.0.branch", "5", "--quiet"]
    )
    assert [(role.name, role.branch) for role in made.pipeline.roles] == [("a", 5)]
    assert config.load(None, ["--eval.systems", "sa,ma"]).eval.systems == ("sa", "ma")


@pytest.mark.parametrize(
    "text", ["!!int ''", "!!float ''", "!!bool x", "!!timestamp x", "? !!set {a}", "[" * 3000]
)
def test_yaml_that_its_parser_stumbles_over_is_refused(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_text(text if text[0] in "?[" else f"seed: {text}")
    with pytest.raises(UserError, match=r"c\.yaml"):
        config.load(str(path))
    with pytest.raises(UserError, match="seed"):
        config.load(None, ["--seed", text])


def test_numbers_are_those_of_json_and_other_spellings_are_text(tmp_path):
    path = tmp_path / "c.yaml"
    for text in ("0100", "1:30", "1_000", "0x10", "010"):
        path.write_text(f"seed: {text}")
        for words in ((str(path),), (None, ["--seed", text])):
            with pytest.raises(UserError, match="seed: expected a whole number"):
                config.load(*words)
        path.write_text(f"model: {{revision: {text}}}\noutput_dir: {text}")
        made = config.load(str(path))
        assert (made.model.revision, made.output_dir) == (text, text)
    for text in ("1e3", "1.10", "12345e6", ".5"):
        path.write_text(f"model: {{revision: {text}}}")
        with pytest.raises(UserError, match=r"revision: .* put it in quotes"):
            config.load(str(path))
    path.write_text("train: {sft: {optim: {learning_rate: 1e-4}}}\nseed: 7\nsave_minutes: .5")
    made = config.load(str(path))
    assert (made.train.sft.optim.learning_rate, made.seed, made.save_minutes) == (1e-4, 7, 0.5)


@pytest.mark.parametrize("text", ["1e5", "0100", "1:30", "1_000", "~", "2024-01-01", "7", ".5"])
def test_a_text_that_looks_like_a_number_is_saved_as_a_text(tmp_path, text):
    made = config.load(None, ["--model.revision", text])
    path = tmp_path / "config.yaml"
    path.write_bytes(config_file.to_yaml(to_dict(made)))
    assert config.load(str(path)) == made
    assert yaml.safe_load(path.read_text())["model"]["revision"] == text


@pytest.mark.parametrize("value", ["2024-07-26", "!!set {a}", "!!binary aGk=", ".nan"])
def test_what_json_cannot_hold_is_refused(tmp_path, value):
    path = tmp_path / "c.yaml"
    path.write_text(f"pipeline: {{roles: [{{name: a, chat_template_kwargs: {{d: {value}}}}}]}}")
    with pytest.raises(UserError, match="chat_template_kwargs"):
        config.load(str(path))


@pytest.mark.parametrize("field", ["mirror", "export.push_to_hub"])
def test_an_unset_variable_is_no_place(field):
    with pytest.raises(UserError, match="an empty text"):
        config.load(None, [f"--{field}", ""])


def test_a_saved_config_of_endless_aliases_is_refused():
    lines = ["a0: &a0 [x,x,x,x,x,x,x,x,x,x]"]
    lines += [f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    raw = "\n".join(lines).encode()
    with pytest.raises(UserError, match="not what the run was made with"):
        config_file.parse(raw, hashlib.sha256(raw).hexdigest(), "run", "place")


@pytest.mark.parametrize("index", ["²", "-1", "9" * 5000])
def test_an_index_that_is_no_number_is_refused(index):
    with pytest.raises(UserError, match="3 entries"):
        config.load(None, [f"--pipeline.roles.{index}.branch", "3"])


def test_a_config_is_a_file_of_moderate_size(tmp_path):
    import os

    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "large.yaml").write_text("seed: [" + "1," * 600_000 + "]")
    for name, words in (("pipe.yaml", "a pipe"), ("large.yaml", "larger than")):
        with pytest.raises(UserError, match=words):
            config.load(str(tmp_path / name))


def test_an_offset_of_a_roles_own_needs_margins_and_margins_an_offset():
    own = [{"name": "a", "template": "{question}", "training": {"dpo": {"offset": 0.5}}}]
    with pytest.raises(
        UserError, match=r"data\.margins and train\.dpo\.offset: found none and 0.5"
    ):
        config.from_dict({"pipeline": {"roles": own}})
    made = config.from_dict({"pipeline": {"roles": own}, "data": {"margins": "gap"}})
    assert made.training_of("a").dpo.offset == 0.5
    with pytest.raises(UserError, match="found gap and 0"):
        config.from_dict({"data": {"margins": "gap"}})


def test_the_star_single_agent_learns_as_the_first_role():
    roles = [
        {"name": "a", "template": "{question}", "training": {"sft": {"epochs": 5}}},
        {"name": "b", "template": "{a}", "training": {"sft": {"epochs": 7}}},
    ]
    made = config.from_dict({"pipeline": {"roles": roles}})
    epochs = [made.training_of(name).sft.epochs for name in ("star", "a", "b", "c")]
    assert epochs == [5, 5, 7, made.train.sft.epochs]


@pytest.mark.parametrize("field", ["patience", "eval_every"])
def test_what_only_held_out_questions_use_is_refused_without_them(field):
    with pytest.raises(UserError, match=rf"train\.sft\.loop\.{field}.*held_out"):
        config.from_dict({"train": {"sft": {"loop": {field: 3}}}})
    config.from_dict({"train": {"sft": {"loop": {field: 3, "held_out": 0.1}}}})


@pytest.mark.parametrize("field", ["--output-dir", "--mirror", "--task.train-path"])
@pytest.mark.parametrize("path", ["", "~/runs", "~"])
def test_a_path_that_a_shell_would_have_filled_in_is_refused(field, path):
    with pytest.raises(UserError, match=r"unset variable|only a shell knows"):
        config.load(None, [field, path])


def test_lists_in_one_text_may_have_blanks_but_not_be_an_unset_variable():
    assert config.load(None, ["--eval.systems", "sa, malt"]).eval.systems == ("sa", "malt")
    assert config.load(None, ["--eval.systems", "[]"]).eval.systems == ()
    with pytest.raises(UserError, match=r"eval\.systems: found an empty text"):
        config.load(None, ["--eval.systems", ""])


def test_the_quickstart_is_found_beside_a_folder_of_its_name(tmp_path, monkeypatch):
    (tmp_path / "quickstart").mkdir()
    monkeypatch.chdir(tmp_path)
    assert config.load("quickstart").task.name == "arithmetic"


@pytest.mark.parametrize("place", ["s3:/bucket/run", "gs:bucket/x", "file:/tmp/x", "memory:x"])
@pytest.mark.parametrize("field", ["mirror", "output_dir"])
def test_a_url_without_its_slashes_is_no_folder(field, place):
    with pytest.raises(UserError, match=rf"{field}: found '{place}', which looks like a URL"):
        config.from_dict({field: place})
    assert getattr(config.from_dict({field: f"./{place}"}), field) == f"./{place}"
    for right in ("s3://bucket/run", "simplecache::s3://bucket/run", "/tmp/a:b", "runs/a:b"):
        assert config.from_dict({"mirror": right}).mirror == right


def test_a_saved_place_that_is_refused_by_now_does_not_keep_a_run_from_another():
    saved = to_dict(config.Config()) | {"mirror": "s3:/bucket/run", "output_dir": "file:/x"}
    assert config.with_defaults(saved) == saved
    del saved["mirror"]
    assert config.with_defaults(saved) == saved | {"mirror": None}


def test_a_mapping_in_a_flag_is_laid_over_the_files_section(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("""
search: {threshold: 0.25}
train: {sft: {epochs: 5}}
mesh: {rules: {embed: fsdp}}
pipeline: {roles: [{name: a, branch: 5, training: {sft: {epochs: 7}}}]}
""")

    def load(*flags):
        return config.load(str(path), flags)

    made = load("--search", "{backup: max}", "--search={block: 8}")
    assert (made.search.threshold, made.search.backup, made.search.block) == (0.25, "max", 8)
    made = load("--train", "{lora: {rank: 4}}", "--train.sft", "{batch_size: 2}")
    assert (made.train.sft.epochs, made.train.sft.batch_size, made.train.lora.rank) == (5, 2, 4)
    made = load("--pipeline.roles.0", "{temperature: 1.0}", "--mesh.rules", "{mlp: tensor}")
    assert (made.pipeline.roles[0].branch, made.pipeline.roles[0].temperature) == (5, 1.0)
    assert made.mesh.rules == {"embed": "fsdp", "mlp": "tensor"}
    # An empty mapping says nothing of a section, and takes free names away.
    assert load("--search", "{}", "--pipeline.roles.0", "{}") == load()
    assert load("--pipeline.roles.0.training", "{}").pipeline.roles[0].training == {}
    # A list is no mapping, and a text no section.
    assert len(load("--pipeline", "{roles: [{name: b}]}").pipeline.roles) == 1
    with pytest.raises(UserError, match="search: expected a mapping"):
        load("--search", "max")


def test_merge_keys_are_read_and_repeated_keys_refused_beside_them(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("""
pipeline:
  roles:
    - &first {name: a, branch: 5, template: "{question}"}
    - &second {<<: *first, name: b, temperature: 0.7}
    - {<<: [*second, *first], name: c, branch: 2}
""")
    made = config.load(str(path)).pipeline.roles
    assert [(r.name, r.branch, r.temperature) for r in made] == [
        ("a", 5, 0.3), ("b", 5, 0.7), ("c", 2, 0.7)
    ]  # fmt: skip
    for text in (
        "search: &s {block: 3, block: 4}\neval: {<<: *s}",
        "search: &s {block: 3}\neval: {<<: *s, trees: 1, trees: 2}",
        "search: &s {block: 3}\neval: {<<: *s, <<: *s}",
    ):
        path.write_text(text)
        with pytest.raises(UserError, match="given twice"):
            config.load(str(path))


def test_two_escapes_of_one_character_are_joined_as_json_means_them(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(r'{"pipeline": {"roles": [{"name": "a", "stop": ["\ud83d\ude00", "x"]}]}}')
    assert config.load(str(path)).pipeline.roles[0].stop == ("\U0001f600", "x")
    path.write_text(r'{"pipeline": {"roles": [{"name": "a", "stop": ["\ude00\ud83d"]}]}}')
    with pytest.raises(UserError, match="half a character"):
        config.load(str(path))


def _role(**fields):
    return {"pipeline": {"roles": [{"name": "a"}, {"name": "b", **fields}]}}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (_role(train="sft", training={"dpo": {"beta": 1.0}}), "roles.1.training.dpo: train: sft"),
        (_role(train="none", training={"sft": {"epochs": 3}}), "roles.1.training.sft: train: none"),
        ({**_role(training={"lora": {"rank": 4}}), "train": {"full": True}}, "roles.1.training.lo"),
        (_role(training={"lora.rank": 4}), "Nest it: lora: {rank: ...}"),
        (_role(training={"dpo": {"optim.warmup": 0}}), "Nest it: optim: {warmup: ...}"),
        (_role(training={"dpo.optim.warmup": 0}), "Nest it: dpo: {optim: {warmup: ...}}"),
        (_role(training={"lor": {}}), "allowed here: lora, sft, dpo, kto, pg."),
        ({"train": {"dpo.beta": 1}}, "Nest it: dpo: {beta: ...}"),
        (_role(template=""), "roles.1.template: found an empty text"),
        (_role(adapter=""), "roles.1.adapter: found an empty text"),
    ],
)
def test_what_would_have_no_effect_or_no_meaning_is_refused(data, words):
    with pytest.raises(UserError) as error:
        config.from_dict(data)
    assert words in str(error.value)


def test_the_first_role_may_have_sft_of_its_own_by_which_the_single_agent_learns():
    roles = [{"name": "a", "train": "none", "training": {"sft": {"epochs": 5}}}, {"name": "b"}]
    assert config.from_dict({"pipeline": {"roles": roles}}).training_of("star").sft.epochs == 5


@pytest.mark.parametrize(
    "name", ["org/my model", "a/b/c", "org/x-", "-x", "org/..", "x" * 90, "", "org/", ".x", "é"]
)
def test_a_name_that_no_repository_can_have_is_refused(name):
    for right in ("org/malt", "malt", "Org_1/a.b_c"):
        check_repository(right, ["generator", "b_"])
    with pytest.raises(UserError, match=r"export\.push_to_hub"):
        check_repository(name, ["generator"])
