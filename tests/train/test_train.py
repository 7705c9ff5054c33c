"""Runs: repeatable, resumable to the bit, learning; the folder that they leave; what is refused."""

import json
from collections import Counter, defaultdict
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
import transformers
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from ppd.bundle import NGRAMS_FILE
from ppd.errors import ArgumentError
from ppd.models.adapter import load_prompt_tokens
from ppd.ngrams import NgramTable
from ppd.train import steps as steps_module
from ppd.train.data import Sequences
from ppd.train.guessers import PromptTokens
from ppd.train.options import TrainOptions
from ppd.train.prepare import initial_tokens, prepare
from ppd.train.report import TrainReport
from ppd.train.steps import CHECKPOINT_FILE, METRICS_FILE, StepProgress
from ppd.train.trainer import _ngrams, train
from tests.train.tiny_runs import WORDS, options, save_chat_model, save_model, save_text, steps_in

HIDDEN = 32


class KilledError(BaseException):
    """As little as a process that is killed, it can be caught by the code under test."""


def kill_at(step: int) -> Callable[[StepProgress], None]:
    def progress(now: StepProgress) -> None:
        if now.step == step:
            raise KilledError

    return progress


@pytest.fixture(scope="module")
def finished(model: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainReport:
    """A run from beginning to end. Read its folder only."""
    return train(str(model), [text], tmp_path_factory.mktemp("runs") / "whole", options())


@pytest.fixture
def killed(model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was killed in its fifth step, with a checkpoint behind every step before."""
    monkeypatch.setattr(steps_module, "_CHECKPOINT_SECONDS", -1.0)
    with pytest.raises(KilledError):
        train(str(model), [text], tmp_path / "killed", options(), progress=kill_at(5))
    return tmp_path / "killed"


def tokens_of(folder: Path) -> torch.Tensor:
    return load_prompt_tokens(folder, HIDDEN)


def test_the_same_command_gives_the_same_embeddings_and_another_seed_does_not(
    finished: TrainReport, model: Path, text: Path, tmp_path: Path
) -> None:
    train(str(model), [text], tmp_path / "again", options())
    train(str(model), [text], tmp_path / "other", options(seed=1))

    assert torch.equal(tokens_of(tmp_path / "again"), tokens_of(finished.folder))
    assert not torch.equal(tokens_of(tmp_path / "other"), tokens_of(finished.folder))


@pytest.mark.parametrize("at", [1, 3, 6])
def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(
    finished: TrainReport, model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    monkeypatch.setattr(steps_module, "_CHECKPOINT_SECONDS", -1.0)
    with pytest.raises(KilledError):
        train(str(model), [text], tmp_path / "run", options(), progress=kill_at(at))
    monkeypatch.undo()
    begun_with: list[int] = []
    train(
        str(model), [text], tmp_path / "run", options(), resume=True, progress=lambda now: begun_with.append(now.step)
    )

    assert begun_with == list(range(at + 1, 7))
    assert torch.equal(tokens_of(tmp_path / "run"), tokens_of(finished.folder))
    lines = [(folder / METRICS_FILE).read_text("utf-8").splitlines() for folder in (tmp_path / "run", finished.folder)]
    assert lines[0] == lines[1]


def test_metrics_behind_the_checkpoint_and_a_line_cut_off_are_dropped_on_resuming(
    finished: TrainReport, killed: Path, model: Path, text: Path
) -> None:
    with (killed / METRICS_FILE).open("a") as file:
        file.write('{"step": 6, "loss": 99.0, "learning_rate": 1.0}\n{"step": 7, "lo')

    train(str(model), [text], killed, options(), resume=True)

    assert steps_in(killed) == steps_in(finished.folder)


def test_a_run_killed_before_its_first_checkpoint_resumes_from_the_beginning(
    finished: TrainReport, model: Path, text: Path, tmp_path: Path
) -> None:
    with pytest.raises(KilledError):
        train(str(model), [text], tmp_path / "run", options(), progress=kill_at(2))
    assert not (tmp_path / "run" / CHECKPOINT_FILE).exists()

    train(str(model), [text], tmp_path / "run", options(), resume=True)

    assert torch.equal(tokens_of(tmp_path / "run"), tokens_of(finished.folder))


@pytest.mark.parametrize("changed", [{"seed": 1}, {"learning_rate": 0.03}, {"steps": 7}, {"loss": "kl"}])
def test_resuming_with_other_settings_names_the_setting(
    killed: Path, model: Path, text: Path, changed: dict[str, object]
) -> None:
    with pytest.raises(ArgumentError, match=f"was made with {next(iter(changed))} "):
        train(str(model), [text], killed, options(**changed), resume=True)


def test_resuming_with_another_model_or_other_data_is_refused(
    killed: Path, model: Path, text: Path, tmp_path: Path
) -> None:
    other = save_model(tmp_path / "other")
    weights = {name: 1.1 * tensor for name, tensor in load_file(other / "model.safetensors").items()}
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(ArgumentError, match="was made with model "):
        train(str(other), [text], killed, options(), resume=True)
    with pytest.raises(ArgumentError, match="was made with data "):
        train(str(model), [save_text(tmp_path / "other.txt", seed=1)], killed, options(), resume=True)


def test_a_damaged_checkpoint_is_one_line(killed: Path, model: Path, text: Path) -> None:
    (killed / CHECKPOINT_FILE).write_bytes((killed / CHECKPOINT_FILE).read_bytes()[:500])

    with pytest.raises(ArgumentError, match=r"checkpoint\.pt is damaged .*--force"):
        train(str(model), [text], killed, options(), resume=True)


def test_training_lowers_the_loss_on_text_it_did_not_see(model: Path, text: Path, tmp_path: Path) -> None:
    settings = options(steps=120, batch_size=4, groups=8, learning_rate=0.05)
    report = train(str(model), [text], tmp_path / "run", settings)

    prepared = prepare(str(model), [text], tmp_path / "cache", settings, Accelerator())
    ids = prepared.held_out["text"].ids
    positions = torch.arange(28).expand(len(ids), -1)
    with torch.no_grad():
        before, after = (
            PromptTokens(prepared.decoder, tokens, settings)(ids, positions).item()
            for tokens in (initial_tokens(prepared, settings), tokens_of(report.folder))
        )
    print(f"weighted KL {before:.3f} to {after:.3f}")
    assert after < 0.95 * before


@pytest.mark.parametrize("recipe", [{"recipe": "one-group"}, {"loss": "kl-tv", "init": "frequent", "temperature": 0.8}])
def test_every_recipe_changes_the_tokens(model: Path, text: Path, tmp_path: Path, recipe: dict[str, object]) -> None:
    report = train(str(model), [text], tmp_path / "run", options(steps=2, num_prompt_tokens=2, **recipe))

    tokens = tokens_of(report.folder)
    assert tokens.shape == (2, HIDDEN)
    assert not torch.equal(tokens[0], tokens[1])  # they start equal


def test_a_model_that_asks_itself_needs_no_data(tmp_path: Path) -> None:
    model = save_chat_model(tmp_path / "model")
    lines: list[str] = []

    report = train(str(model), "self", tmp_path / "run", options(length=64), tell=lines.append)

    assert set(report.trained) == {"rollouts"}
    assert any(line.startswith("questions: 17 in ") for line in lines)
    assert any(line.startswith("rollouts: 16 to train on, 1 held out; ") for line in lines)
    assert "data: self" in (report.folder / "README.md").read_text("utf-8")
    with pytest.raises(ArgumentError, match="no text or answers to train on"):
        train(str(model), "self", tmp_path / "text", options(length=64, source="text"))


def test_questions_alone_are_trained_on_by_their_answers(tmp_path: Path) -> None:
    model, data = save_chat_model(tmp_path / "model"), tmp_path / "chat.json"
    data.write_text(json.dumps([{"messages": [{"role": "user", "content": f"w{i} w{i // 3}"}]} for i in range(50)]))

    prepared = prepare(str(model), [data], tmp_path / "cache", options(num_rollouts=99), Accelerator())

    made = prepared.sets["rollouts"]
    assert set(prepared.sets) == set(prepared.held_out) == {"rollouts"}
    assert len(made) + len(prepared.held_out["rollouts"]) <= 50
    assert set(made.ids[torch.arange(len(made)), made.first].tolist()) == {WORDS.index("w43")}  # the answer begins


def test_16_bits_stay_16_bits_and_the_tokens_are_trained_in_32(model: Path, text: Path, tmp_path: Path) -> None:
    prepared = prepare(str(model), [text], tmp_path / "cache", options(dtype="bfloat16"), Accelerator())
    report = train(str(model), [text], tmp_path / "run", options(dtype="bfloat16"))

    kinds = {name: weight.dtype for name, weight in prepared.decoder.named_parameters()}
    assert {dtype for name, dtype in kinds.items() if "norm" in name} == {torch.float32}
    assert {dtype for name, dtype in kinds.items() if "norm" not in name} == {torch.bfloat16}
    tokens = tokens_of(report.folder)
    assert not torch.equal(tokens, tokens.bfloat16().float())
    assert all(torch.isfinite(accuracy.greedy).all() for accuracy in report.trained.values())


def test_the_adapter_is_written_with_every_checkpoint(killed: Path) -> None:
    tokens = torch.load(killed / CHECKPOINT_FILE, weights_only=True)["weights"]["weight"]

    assert torch.equal(tokens_of(killed), tokens)


def test_lines_say_what_is_done(model: Path, text: Path, tmp_path: Path) -> None:
    lines: list[str] = []

    train(str(model), [text], tmp_path / "run", options(), tell=lines.append)

    begins = ["weights: float32 on cpu", "memory: 0.0 GB", "rollouts: 16 to train on, 3 held out; "]
    begins += ["16 rollouts made in ", "3 rollouts made", "step 1 (17%, "]
    assert [line[: len(begin)] for line, begin in zip(lines, begins, strict=False)] == begins
    assert len(lines) == 10  # a tenth of six steps is a step, the end apart


def test_the_folder_loads_with_peft_beside_its_model(finished: TrainReport, model: Path) -> None:
    base = transformers.AutoModelForCausalLM.from_pretrained(model)

    loaded = peft.PeftModel.from_pretrained(base, str(finished.folder))

    assert torch.equal(loaded.get_prompt_embedding_to_save("default"), tokens_of(finished.folder))


def test_the_folder_holds_card_metrics_and_accuracy_and_no_checkpoint(finished: TrainReport, model: Path) -> None:
    names = {path.name for path in finished.folder.iterdir()}
    assert {"README.md", "accuracy.json", "metrics.jsonl", "accuracy.png", "adapter_model.safetensors"} <= names
    assert CHECKPOINT_FILE not in names
    assert (finished.folder / "accuracy.png").read_bytes().startswith(b"\x89PNG")

    card = (finished.folder / "README.md").read_text("utf-8")
    for words in (model.name, "words.txt", "--steps 6", "--seed 0", f"torch {torch.__version__}", "untrained"):
        assert words in card

    accuracy = json.loads((finished.folder / "accuracy.json").read_text("utf-8"))
    assert accuracy["schema"] == 1
    assert torch.tensor(accuracy["marginals"]).shape == (3, 10)
    assert all(0 <= sum(row) <= 1 + 1e-6 for row in accuracy["marginals"])
    assert set(accuracy["sets"]) == {"rollouts", "text"}
    assert accuracy["training_seconds"] == round(finished.seconds, 1)


def test_the_folder_holds_a_table_of_what_the_model_says_after_its_own_tokens(
    finished: TrainReport, model: Path, text: Path, tmp_path: Path
) -> None:
    rollouts = prepare(str(model), [text], tmp_path / "cache", options(), Accelerator()).sets["rollouts"]
    table = NgramTable(finished.folder / NGRAMS_FILE)

    assert table.vocab_size == len(WORDS)
    after: dict[int, Counter[int]] = defaultdict(Counter)
    for ids, first, end in zip(rollouts.ids.tolist(), rollouts.first.tolist(), rollouts.end.tolist(), strict=True):
        answer = ids[max(0, first - 2) : end + 1]  # three tokens before the first that the model said; EOS too
        for token, follower in pairwise(answer):
            after[token][follower] += 1
    sure = {token: counts.most_common(1)[0][0] for token, counts in after.items() if len(counts) == 1}
    assert sure
    assert {token: table.guess(-1, -1, token)[0] for token in sure} == sure
    assert {table.guess(-1, -1, token) for token in range(len(WORDS)) if token not in after} <= {(0, 0)}


def test_the_table_knows_the_end_of_an_answer_and_what_its_first_token_followed(tmp_path: Path) -> None:
    rollouts = Sequences(torch.tensor([[5, 6, 7, 8, 9, 2, 0, 0]]), torch.tensor([3]), torch.tensor([5]))
    decoder = SimpleNamespace(embedding=torch.nn.Embedding(10, 1))
    prepared: Any = SimpleNamespace(sets={"rollouts": rollouts}, decoder=decoder)
    (tmp_path / NGRAMS_FILE).write_bytes(_ngrams(prepared))
    table = NgramTable(tmp_path / NGRAMS_FILE)

    assert [table.guess(-1, -1, token)[0] for token in range(10)] == [0, 0, 0, 0, 0, 0, 7, 8, 9, 2]
    assert table.guess(6, 7, 8)[0] == 9


def test_metrics_have_every_step_and_the_held_out_figures(finished: TrainReport) -> None:
    entries = [json.loads(line) for line in (finished.folder / METRICS_FILE).read_text("utf-8").splitlines()]

    assert [entry["step"] for entry in entries if "loss" in entry] == [1, 2, 3, 4, 5, 6]
    glances = [entry for entry in entries if "held_out" in entry]
    assert [entry["step"] for entry in glances] == [1, 2, 3, 4, 5]  # every tenth of six steps, the end apart
    for entry in glances:
        assert {name: len(by_distance) for name, by_distance in entry["held_out"].items()} == {"rollouts": 3, "text": 3}
    ends = [(entry["tokens"], entry["set"]) for entry in entries if "tokens" in entry]
    assert sorted(ends) == sorted((kind, name) for kind in ("trained", "untrained") for name in ("rollouts", "text"))


def test_an_earlier_run_is_kept_unless_force_is_given(
    finished: TrainReport, killed: Path, model: Path, text: Path
) -> None:
    for folder, remedy in ((finished.folder, "give --force or"), (killed, "give --resume, --force, or")):
        before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
        with pytest.raises(ArgumentError, match=remedy):
            train(str(model), [text], folder, options())
        assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    with pytest.raises(ArgumentError, match="finished run"):
        train(str(model), [text], finished.folder, options(), resume=True)

    train(str(model), [text], killed, options(seed=3), force=True)

    assert [line["step"] for line in steps_in(killed)] == [1, 2, 3, 4, 5, 6]


def test_a_forced_run_that_is_killed_leaves_nothing_of_the_earlier_one(killed: Path, model: Path, text: Path) -> None:
    reports = ("accuracy.json", "ngrams.bin", "README.md", "accuracy.png")
    for name in reports:
        (killed / name).write_text("of the earlier run")

    with pytest.raises(KilledError):
        train(str(model), [text], killed, options(), force=True, progress=kill_at(3))

    assert (killed / "adapter_config.json").exists()
    assert not [name for name in reports if (killed / name).exists()]


def test_out_that_is_in_the_way_is_refused(model: Path, text: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")

    for name, words in (("file", "is a file"), ("mine", "holds other files")):
        with pytest.raises(ArgumentError, match=words):
            train(str(model), [text], tmp_path / name, options(), force=True)
    with pytest.raises(ArgumentError, match="no earlier run"):
        train(str(model), [text], tmp_path / "new", options(), resume=True)
    with pytest.raises(ArgumentError, match="not both"):
        train(str(model), [text], tmp_path / "new", options(), resume=True, force=True)


def test_bad_data_leaves_no_folder_behind(model: Path, tmp_path: Path) -> None:
    (tmp_path / "binary.txt").write_bytes(b"a\0b")

    with pytest.raises(ArgumentError, match="is binary"):
        train(str(model), [tmp_path / "binary.txt"], tmp_path / "run", options())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"steps": None}, "--minutes or --steps"),
        ({"minutes": 1.0}, "--minutes or --steps"),
        ({"steps": None, "minutes": 0.0}, "minutes is 0"),
        ({"steps": None, "minutes": float("nan")}, "minutes is nan"),
        ({"steps": 0}, "steps is 0"),
        ({"num_prompt_tokens": 0}, "num_prompt_tokens is 0"),
        ({"num_prompt_tokens": 65}, "at most 64"),
        ({"groups": 0}, "groups is 0"),
        ({"batch_size": 1}, "batch_size is 1; .* or name a source"),
        ({"length": 10}, "length is 10"),
        ({"learning_rate": 0.0}, "learning_rate is 0"),
        ({"temperature": -1.0}, "temperature is -1"),
        ({"loss": "l2"}, "expected kl or kl-tv"),
        ({"init": "zero"}, "expected mean or frequent"),
        ({"source": "web"}, "expected both or rollouts or text"),
        ({"recipe": "x"}, "expected packed or one-group"),
        ({"steps": None, "minutes": "5"}, "minutes is '5'; expected a number above 0"),
        ({"learning_rate": "x"}, "learning_rate is 'x'; expected a number above 0"),
        ({"temperature": None}, "temperature is None; expected a number of at least 0"),
        ({"seed": 1.5}, "seed is 1.5; expected a whole number from 0 to 2"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 1 << 64}, "seed is 18446744073709551616"),
        ({"dtype": "float16"}, "expected auto or float32 or bfloat16"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        TrainOptions(**{"steps": 6} | changed)
