"""Pretrain tinypy's base weights: a small Llama on permissively licensed Python source, on a CPU or a GPU.

    python examples/tinypy/pretrain.py --out build/tinypy --minutes 80 SOURCES

SOURCES has one folder per package, as fetch.py makes it. Writes a Hugging Face folder. Muon on the matrices, AdamW on
embedding and norms; the rate is constant, then falls linearly over the last 45 % of the time. A run that was
stopped goes on from its last checkpoint when the same command is given again.
"""

import argparse
import hashlib
import json
import math
import re
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

VOCAB_SIZE, SEQUENCE, BATCH = 8192, 512, 16
BOS, EOS = "<s>", "</s>"
# A word takes the space, dot, underscore or bracket before it; a line break takes the indentation behind it.
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|\s*\n *| ?[^\s\p{L}\p{N}]+|\s+"
MAX_PACKAGE_BYTES = 4_000_000
HELD_OUT_FRACTION = 0.01
CHECKPOINT_STEPS = 200


def read_package(folder: Path) -> Iterator[tuple[str, str]]:
    """Name and text of a package's source files, in an order that depends on nothing but their names, up to a limit."""
    paths = sorted(folder.rglob("*.py"), key=lambda path: _hash(path.relative_to(folder).as_posix()))
    size = 0
    for path in paths:
        if size > MAX_PACKAGE_BYTES:
            return
        if not 300 <= path.stat().st_size <= 100_000:
            continue
        try:
            text = path.read_text("utf-8").replace("\t", "    ").replace("\r\n", "\n")
        except UnicodeDecodeError:
            continue
        if sum(map(str.isdigit, text)) > 0.1 * len(text) or len(text) > 70 * text.count("\n"):
            continue  # tables of data, not code
        size += len(text)
        yield f"{folder.name}/{path.relative_to(folder).as_posix()}", text


def read_sources(root: Path) -> tuple[list[str], list[str]]:
    """Training and held-out texts. A file is held out by its name's hash; a text that stands twice is taken once."""
    seen: set[str] = set()
    train, held_out = list[str](), list[str]()
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        for name, text in read_package(folder):
            digest = _hash(text)
            if digest not in seen:
                seen.add(digest)
                (held_out if int(_hash(name), 16) % 1000 < 1000 * HELD_OUT_FRACTION else train).append(text)
    return train, held_out


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Byte-level BPE whose words carry their leading space."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=[BOS, EOS], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, 0)]
    )
    return tokenizer


def encode(tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
    """All texts behind one another, each between BOS and EOS: uint16 [tokens]."""
    parts = []
    for i in range(0, len(texts), 256):
        parts += [np.array([*e.ids, 1], np.uint16) for e in tokenizer.encode_batch(texts[i : i + 256])]
    return np.concatenate(parts)


def split_line_breaks(tokenizer: Tokenizer, ids: np.ndarray, fraction: float) -> np.ndarray:
    """Part some line breaks from the indentation behind them, so that a text may also be continued behind a line break.

    Args:
        tokenizer: Its tokens of a line break and spaces are split into two tokens that it has as well.
        ids: uint16 [tokens].
        fraction: How many of these tokens are split.

    Returns:
        uint16 [more tokens].
    """
    vocabulary = tokenizer.get_vocab()
    first, second = np.arange(VOCAB_SIZE, dtype=np.uint16), np.zeros(VOCAB_SIZE, np.uint16)
    for text, token in vocabulary.items():
        match = re.fullmatch("([^Ġ]*Ċ)(Ġ+)", text)
        if match and match[1] in vocabulary and match[2] in vocabulary:
            first[token], second[token] = vocabulary[match[1]], vocabulary[match[2]]
    chosen = (second[ids] > 0) & (np.random.default_rng(1).random(len(ids)) < fraction)
    out = np.repeat(ids, 1 + chosen)
    places = np.flatnonzero(chosen) + np.arange(chosen.sum())
    out[places], out[places + 1] = first[ids[chosen]], second[ids[chosen]]
    return out


def build_model() -> LlamaForCausalLM:
    """8.39 M parameters; output projections start at zero, which Muon likes."""
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=SEQUENCE,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        use_cache=False,
    )
    model = LlamaForCausalLM(config)
    for name, weight in model.named_parameters():
        if weight.ndim == 2:
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                nn.init.zeros_(weight)
            else:
                nn.init.normal_(weight, std=0.02 if "embed" in name else 0.5 / weight.shape[1] ** 0.5)
    return model


def make_optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for the rest."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    others = [model.model.embed_tokens.weight, *(p for p in model.parameters() if p.ndim == 1)]
    return [
        torch.optim.Muon(matrices, lr=0.02, weight_decay=0.01, momentum=0.95),
        torch.optim.AdamW(others, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def loss_of(model: LlamaForCausalLM, ids: Tensor) -> Tensor:
    """Mean cross-entropy in nats per token of `ids` [B, SEQUENCE + 1]; the products are bfloat16."""
    with torch.autocast(ids.device.type, torch.bfloat16):
        hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
        logits = hidden @ model.model.embed_tokens.weight.T
    return nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())


def batch_of(ids: np.ndarray, windows: np.ndarray) -> Tensor:
    """Windows of SEQUENCE + 1 tokens: int64 [B, SEQUENCE + 1]."""
    return torch.from_numpy(
        np.stack([ids[w * SEQUENCE : w * SEQUENCE + SEQUENCE + 1] for w in windows]).astype(np.int64)
    )


@torch.no_grad()
def held_out_loss(loss, ids: np.ndarray, device: str) -> float:
    """Nats per token over up to 64 windows."""
    windows = np.arange(min(64, (len(ids) - 1) // SEQUENCE) // BATCH * BATCH)
    losses = [loss(batch_of(ids, windows[i : i + BATCH]).to(device)).item() for i in range(0, len(windows), BATCH)]
    return sum(losses) / len(losses)


def save(model: LlamaForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """A Hugging Face folder with fp16 weights."""
    weights = {k: v.detach().cpu().half() for k, v in model.state_dict().items() if k != "lm_head.weight"}
    copy = LlamaForCausalLM(model.config).half()
    copy.load_state_dict(weights, strict=False)
    copy.config.use_cache = True
    copy.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "model_max_length": SEQUENCE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")


def main() -> None:
    """Train for the time given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", type=Path, help="folder with one folder of source files per package")
    parser.add_argument("--out", type=Path, default=Path("build/tinypy"))
    parser.add_argument("--minutes", type=float, default=70)
    parser.add_argument("--start-from", type=Path, help="folder of an earlier run to go on from")
    parser.add_argument("--rate", type=float, default=1.0, help="factor on the learning rates")
    parser.add_argument("--constant", type=float, default=0.55, help="share of the time before the rate falls")
    parser.add_argument("--split", type=float, default=0.0, help="share of line breaks parted from their indentation")
    args = parser.parse_args()
    torch.manual_seed(0)
    args.out.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"

    train, held_out = read_sources(args.sources)
    tokenizer_file = (args.start_from or args.out) / "tokenizer.json"
    if not tokenizer_file.exists():
        train_tokenizer(train[::4]).save(str(tokenizer_file))
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    rng = np.random.default_rng(0)
    rng.shuffle(train)
    train_ids, held_out_ids = (
        split_line_breaks(tokenizer, encode(tokenizer, train), args.split),
        encode(tokenizer, held_out),
    )
    characters = sum(map(len, held_out)) / len(held_out_ids)
    print(
        f"{len(train)} files, {len(train_ids) / 1e6:.1f} M tokens; held out {len(held_out)} files, {len(held_out_ids)} "
        f"tokens; {characters:.2f} characters per token",
        flush=True,
    )

    model = (
        build_model()
        if args.start_from is None
        else LlamaForCausalLM.from_pretrained(args.start_from, dtype=torch.float32)
    )
    model.to(device)
    optimizers = make_optimizers(model)
    peak_rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    step, elapsed, checkpoint = 0, 0.0, args.out / "checkpoint.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        step, elapsed = saved["step"], saved["elapsed"]
        print(f"going on from step {step}", flush=True)
    loss = torch.compile(lambda ids: loss_of(model, ids))
    order = rng.permutation((len(train_ids) - 1) // SEQUENCE)
    others = optimizers[1].param_groups[0]["params"]
    started = time.monotonic() - elapsed
    while (elapsed := time.monotonic() - started) < 60 * args.minutes:
        progress = elapsed / 60 / args.minutes
        decay = 1 if progress < args.constant else 0.02 + 0.98 * (1 - progress) / (1 - args.constant)
        for optimizer, rates in zip(optimizers, peak_rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * args.rate * min(1, (step + 1) / 50) * decay
        windows = np.take(order, range(step * BATCH, (step + 1) * BATCH), mode="wrap")
        value = loss(batch_of(train_ids, windows).to(device))
        value.backward()
        nn.utils.clip_grad_norm_(others, 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step += 1
        if step % 20 == 0:
            print(f"{elapsed / 60:.1f} min, step {step}: loss {value.item():.3f}", flush=True)
        if step % CHECKPOINT_STEPS == 0:
            state = {"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers]}
            torch.save({**state, "step": step, "elapsed": time.monotonic() - started}, checkpoint)
            save(model, tokenizer, args.out)
            print(f"held out {held_out_loss(loss, held_out_ids, device):.4f} nats per token", flush=True)
    save(model, tokenizer, args.out)
    checkpoint.unlink(missing_ok=True)
    final = held_out_loss(loss, held_out_ids, device)
    print(
        f"{step} steps, {step * BATCH * SEQUENCE / 1e6:.1f} M tokens seen, epochs {step * BATCH / len(order):.2f}, "
        f"held out {final:.4f} nats per token, {final / characters:.4f} per character"
        + ("" if math.isfinite(final) else ": the run diverged")
    )


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


if __name__ == "__main__":
    main()
