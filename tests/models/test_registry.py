"""The registry, the files of the embedded model, and the chat template that ships with the package."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ppd.errors import ModelError
from ppd.models import registry
from ppd.models.registry import EMBEDDED, ModelEntry, find_entry, load_registry, nearest_names

VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


@pytest.mark.parametrize(
    ("name", "hub_id", "context"),
    [
        ("tinypy", None, 512),
        ("mobilellama", "mtgv/MobileLLaMA-1.4B-Chat", 2048),
        ("vicuna-7b", "lmsys/vicuna-7b-v1.3", 2048),
        ("vicuna-13b", "lmsys/vicuna-13b-v1.3", 2048),
        ("tinyllama", "TinyLlama/TinyLlama-1.1B-Chat-v1.0", 2048),
        ("llama-3.2-1b", "meta-llama/Llama-3.2-1B-Instruct", 131072),
        ("llama-3.2-3b", "meta-llama/Llama-3.2-3B-Instruct", 131072),
        ("qwen2.5-0.5b", "Qwen/Qwen2.5-0.5B-Instruct", 32768),
        ("qwen2.5-1.5b", "Qwen/Qwen2.5-1.5B-Instruct", 32768),
        ("qwen3-0.6b", "Qwen/Qwen3-0.6B", 40960),
        ("qwen3-1.7b", "Qwen/Qwen3-1.7B", 40960),
        ("smollm2-135m", "HuggingFaceTB/SmolLM2-135M-Instruct", 8192),
        ("smollm2-360m", "HuggingFaceTB/SmolLM2-360M-Instruct", 8192),
        ("smollm2-1.7b", "HuggingFaceTB/SmolLM2-1.7B-Instruct", 8192),
    ],
)
def test_known_models_have_their_hub_id_and_context(name: str, hub_id: str | None, context: int) -> None:
    entry = load_registry()[name]
    assert (entry.name, entry.hub_id, entry.context) == (name, hub_id, context)


def test_every_entry_is_well_formed() -> None:
    for name, entry in load_registry().items():
        assert entry.name == name == name.lower()
        assert entry.parameters.endswith((" M", " B"))
        assert entry.context > 0
        assert (entry.folder is None) == (entry.hub_id is not None)
        assert entry.read_chat_template() or entry.chat_template is None


def test_only_the_models_of_the_paper_have_published_prompt_tokens_and_the_vicuna_template() -> None:
    paper = {"mobilellama", "vicuna-7b", "vicuna-13b"}
    entries = load_registry()
    assert {name for name, entry in entries.items() if entry.prompt_tokens not in (None, EMBEDDED)} == paper
    assert {name for name, entry in entries.items() if entry.chat_template == "vicuna.jinja"} == paper
    assert entries["vicuna-7b"].prompt_tokens == "hmarkc/ppd-vicuna-7b-v1.3"


def test_embedded_model_is_complete_and_agrees_with_its_entry() -> None:
    folder = load_registry()["tinypy"].folder
    assert folder is not None
    names = {path.name for path in folder.iterdir()}
    assert {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "README.md",
    } <= names
    config = json.loads((folder / "config.json").read_text("utf-8"))
    assert config["max_position_embeddings"] == load_registry()["tinypy"].context


def test_find_entry_takes_names_and_hub_ids_exactly() -> None:
    assert find_entry("vicuna-7b") is find_entry("lmsys/vicuna-7b-v1.3") is not None
    assert find_entry("Vicuna-7B") is None
    assert find_entry("") is None


@pytest.mark.parametrize(
    ("typed", "nearest"), [("vicuna7b", "vicuna-7b"), ("Llama-3.2-1B", "llama-3.2-1b"), ("qwen3_0.6b", "qwen3-0.6b")]
)
def test_nearest_names_puts_the_likeliest_first(typed: str, nearest: str) -> None:
    assert nearest_names(typed)[0] == nearest


def test_nearest_names_lists_everything_when_nothing_is_like_it() -> None:
    assert nearest_names("@@@@") == list(load_registry())


def test_entries_cannot_be_changed_and_the_dict_is_the_callers_own() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        load_registry()["tinypy"].context = 1  # type: ignore[misc]
    load_registry().clear()
    assert "tinypy" in load_registry()


def test_registry_of_a_newer_schema_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "registry.json").write_text('{"schema": 2, "models": {}}', "utf-8")
    monkeypatch.setattr(registry, "_HERE", tmp_path)
    registry._entries.cache_clear()
    try:
        with pytest.raises(ModelError, match="schema 2, expected 1"):
            load_registry()
    finally:
        registry._entries.cache_clear()


def test_registry_and_hub_import_nothing_heavy() -> None:
    code = (
        "import sys, ppd.models, ppd.models.registry, ppd.models.hub; "
        "print(sorted({'torch', 'huggingface_hub', 'transformers', 'numpy', 'safetensors'} & sys.modules.keys()))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


# --- the Vicuna chat template ---


def render_vicuna(messages: list[dict[str, str]], *, add_generation_prompt: bool = True) -> str:
    def raise_exception(message: str) -> None:
        raise ValueError(message)

    entry = load_registry()["vicuna-7b"]
    text = entry.read_chat_template()
    assert text is not None
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = raise_exception
    template = environment.from_string(text)
    return template.render(messages=messages, bos_token="<s>", add_generation_prompt=add_generation_prompt)


def turns(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[index % 2], "content": content} for index, content in enumerate(contents)]


def test_vicuna_template_asks_for_the_first_answer() -> None:
    assert render_vicuna(turns("Hi!")) == f"<s>{VICUNA_SYSTEM} USER: Hi! ASSISTANT:"


def test_vicuna_template_ends_every_answer_with_eos_and_no_space() -> None:
    expected = f"<s>{VICUNA_SYSTEM} USER: Hi! ASSISTANT: Hello.</s>USER: Bye. ASSISTANT:"
    assert render_vicuna(turns("Hi!", "Hello.", "Bye.")) == expected


def test_vicuna_template_without_generation_prompt_stops_after_the_last_message() -> None:
    expected = f"<s>{VICUNA_SYSTEM} USER: Hi! ASSISTANT: Hello.</s>"
    assert render_vicuna(turns("Hi!", "Hello."), add_generation_prompt=False) == expected


def test_vicuna_template_takes_a_leading_system_message_in_place_of_its_own() -> None:
    messages = [{"role": "system", "content": "Be brief."}, *turns("Hi!")]
    assert render_vicuna(messages) == "<s>Be brief. USER: Hi! ASSISTANT:"


def test_vicuna_template_keeps_the_text_of_messages_as_it_is() -> None:
    assert " USER:  two\n{{ lines }} \n ASSISTANT:" in render_vicuna(turns(" two\n{{ lines }} \n"))


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        (("assistant",), "message 1 is from assistant, expected user"),
        (("user", "user"), "message 2 is from user, expected assistant"),
        (("user", "assistant", "system"), "message 3 is from system, expected user"),
        (("system", "system"), "is from system, expected user"),
        (("user", "tool"), "is from tool, expected assistant"),
        (("user", "assistant"), "last message must be from user"),
        ((), "last message must be from user"),
    ],
)
def test_vicuna_template_refuses_a_wrong_order_of_roles(roles: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        render_vicuna([{"role": role, "content": "x"} for role in roles])


def test_entry_of_a_hub_model_has_no_folder() -> None:
    entry = ModelEntry(name="x", hub_id="a/b", context=1, parameters="1 M", chat_template=None, prompt_tokens=None)
    assert entry.folder is None
    assert entry.note == ""
