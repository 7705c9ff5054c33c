"""What 4 bits cost: this project's quantiser against ONNX Runtime's own, on the same weights and texts.

    python benchmarks/int4.py MODEL [--text FILE] [--tokens 2048] [--only NAME...]

MODEL is what `ppd-export --model` takes. Every method quantises the projections of the layers; LM head and embedding
have this project's 8 bits each time. The decoder runs in PyTorch with the dequantised weights, in fp32, one weight in
memory at a time, over two texts: the one that an export is judged on, and that of `--text` (documents as `ppd train`
reads them, conversations through the model's chat template; cut into pieces of 256 tokens). Neither is the text that
weights are fitted to. Prints a table (mean KL divergence in nats, share of tokens with the same best one, bytes of the
projections), then one JSON line.

`nearest` is rounding to the nearest of -7..7. ONNX Runtime's are called as its MatMulNBitsQuantizer calls them, in
blocks of 32: DEFAULT and RTN with zero points, HQQ (its zero points are floating point: other bytes, and no standard
graph can hold them), k_quant, k_quant with 8 bits for o and down of the layers that onnxruntime-genai's recipe
`k_quant_mixed` takes them for, and GPTQ fitted to the same text as ours.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from onnxruntime.quantization import matmul_nbits_quantizer as theirs
from onnxruntime.quantization.neural_compressor import weight_only
from tokenizers import Tokenizer
from torch import Tensor

from ppd.documents import read_records
from ppd.export.forms import EMBEDDING, HEAD, Forms
from ppd.export.quantise import Form, quantise
from ppd.export.text import rows_of, run_checkpoint
from ppd.export.weights import UntiedWeights, placeholder_decoder, streamed
from ppd.models.checkpoint import open_weights
from ppd.models.config import read_config
from ppd.models.decoder import Decoder
from ppd.models.hub import resolve_model
from ppd.models.tokenizer import TokenizerFiles, read_tokenizer
from ppd.runtime.chat import render_chat

BLOCK, PIECE = 32, 256
Fake = Callable[[str, Tensor, Tensor], tuple[Tensor, float]]
"""Name, weight [in, out] and inputs [T, in] → the dequantised weight and its bytes."""


def size(weight: Tensor, bits: int, zero_point_bits: int, block: int = BLOCK) -> float:
    """Bytes of a weight in blocks, with scales of fp32."""
    return weight.numel() * bits / 8 + weight.numel() / block * (4 + zero_point_bits / 8)


def ours(form: Form) -> Fake:
    """This project's."""

    def fake(_name: str, weight: Tensor, inputs: Tensor) -> tuple[Tensor, float]:
        assert form.block is not None
        bytes_of = size(weight, form.bits, 4 * form.zero_points, form.block)
        return quantise(weight, form, inputs).dequantise(), bytes_of

    return fake


def nearest(_name: str, weight: Tensor, _inputs: Tensor) -> tuple[Tensor, float]:
    """Symmetric, the largest number of a block keeps its value."""
    blocks = weight.reshape(-1, BLOCK, weight.shape[1])
    scale = blocks.abs().amax(1, keepdim=True) / 7
    values = (blocks / scale.clamp(min=1e-30)).round().clamp(-7, 7)
    return (values * scale).view(weight.shape), size(weight, 4, 0)


def by_blocks(function: Callable[..., tuple[np.ndarray, np.ndarray, np.ndarray]], bits: int = 4, **more: str) -> Fake:
    """One of ONNX Runtime's functions that take blocks in rows."""

    def fake(_name: str, weight: Tensor, _inputs: Tensor) -> tuple[Tensor, float]:
        values, scale, zero = function(weight.T.numpy().copy(), bits, BLOCK, **more)
        found = (values - zero.astype(np.float64)) * scale
        return torch.from_numpy(found.astype(np.float32).reshape(weight.T.shape)).T, size(weight, bits, bits)

    return fake


def default(_name: str, weight: Tensor, _inputs: Tensor) -> tuple[Tensor, float]:
    """ONNX Runtime's DEFAULT."""
    config = theirs.DefaultWeightOnlyQuantConfig(block_size=BLOCK, is_symmetric=False)
    packed, scales, zeros = theirs.DefaultWeightOnlyQuantizer(config).qbits_block_quant(weight.contiguous().numpy())

    def unpack(numbers: np.ndarray, count: int) -> np.ndarray:
        flat = numbers.reshape(weight.shape[1], -1)
        return np.stack([flat & 15, flat >> 4], -1).reshape(weight.shape[1], -1)[:, :count].astype(np.float32)

    num_blocks = len(weight) // BLOCK
    values = unpack(packed, len(weight)).reshape(-1, num_blocks, BLOCK)
    steps = values - unpack(zeros, num_blocks)[..., None]
    found = steps * scales.reshape(-1, num_blocks, 1)
    return torch.from_numpy(found.reshape(weight.T.shape)).T, size(weight, 4, 4)


def hqq(_name: str, weight: Tensor, _inputs: Tensor) -> tuple[Tensor, float]:
    """ONNX Runtime's HQQ."""
    quantiser = theirs.HQQWeightOnlyQuantizer(theirs.HQQWeightOnlyQuantConfig(block_size=BLOCK))
    values, scales, zeros = quantiser.quantize_internal(weight.T.contiguous(), group_size=BLOCK)
    blocks = values.view(*scales.shape, BLOCK)
    return ((blocks - zeros[..., None]) * scales[..., None]).reshape(weight.T.shape).T, size(weight, 4, 32)


def gptq(_name: str, weight: Tensor, inputs: Tensor) -> tuple[Tensor, float]:
    """ONNX Runtime's GPTQ."""
    hessian = (inputs.T @ inputs * 2 / len(inputs)).numpy()
    found = weight_only.gptq(weight.contiguous().numpy().copy(), hessian, 4, BLOCK)
    return torch.from_numpy(np.asarray(found, np.float32)), size(weight, 4, 4)


def mixed(num_layers: int) -> Fake:
    """k_quant with 8 bits where `k_quant_mixed` has them."""
    few, many = by_blocks(weight_only.quant_tensor_k_quant_cpu), by_blocks(weight_only.quant_tensor_k_quant_cpu, 8)
    eighth = num_layers // 8

    def fake(name: str, weight: Tensor, inputs: Tensor) -> tuple[Tensor, float]:
        layer = int(name.split(".")[1])
        is_dear = layer < eighth or layer >= 7 * eighth or (layer - eighth) % 3 == 2
        with_eight = is_dear and name.endswith(("mlp.down.weight", "attention.qkv.weight"))
        return (many if with_eight else few)(name, weight, inputs)

    return fake


def methods(num_layers: int) -> dict[str, Fake]:
    """Every method by its name in the table."""
    return {
        "nearest": nearest,
        "ORT DEFAULT": default,
        "ORT RTN": by_blocks(weight_only.quant_tensor, scheme="asym", dtype="uint"),
        "ORT HQQ": hqq,
        "ORT k_quant": by_blocks(weight_only.quant_tensor_k_quant_cpu),
        "ORT k_quant_mixed": mixed(num_layers),
        "ORT GPTQ": gptq,
        "ours, for TensorRT": ours(Form(4, BLOCK)),
        "ours, blocks of 32": ours(Form(4, BLOCK, zero_points=True)),
        "ours": ours(Form(4, 64, zero_points=True)),
    }


@dataclass
class Judged:
    """One method on one text."""

    mean_kl: float
    top1: float


@torch.no_grad()
def log_probabilities(decoder: Decoder, pieces: list[Tensor]) -> list[Tensor]:
    """Of every token after each piece; pieces do not see each other."""
    hidden = rows_of(decoder, pieces)
    return [decoder.logits(rows).log_softmax(-1) for rows in hidden.split([len(piece) for piece in pieces])]


def judge(before: list[Tensor], after: list[Tensor]) -> Judged:
    """Compare."""
    count = sum(map(len, before))
    divergence = sum(float((b.exp() * (b - a)).sum(-1).sum()) for b, a in zip(before, after, strict=True))
    same = sum(int((b.argmax(-1) == a.argmax(-1)).sum()) for b, a in zip(before, after, strict=True))
    return Judged(divergence / count, same / count)


def pieces_of(path: Path, tokenizer: TokenizerFiles, num_tokens: int) -> list[Tensor]:
    """A text in pieces."""
    encode, ids = Tokenizer.from_str(tokenizer.tokenizer_json).encode, list[int]()
    for document in (record.document for record in read_records([path])):
        if isinstance(document, str):
            ids += encode(document).ids
        elif tokenizer.chat_template is None:
            ids += encode("\n".join(str(message["content"]) for message in document)).ids
        else:
            text = render_chat(tokenizer.chat_template, document, tokenizer.special_tokens, answer_follows=False)
            ids += encode(text, add_special_tokens=False).ids
        if len(ids) >= num_tokens:
            break
    return list(torch.tensor(ids[:num_tokens]).split(PIECE))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--only", nargs="*")
    args = parser.parse_args()
    source = resolve_model(args.model)
    config = read_config(source.path)
    tokenizer = read_tokenizer(source.path, source.entry)
    if tokenizer is None:
        parser.error(f"{source.path} has no tokenizer")
    report: dict[str, dict[str, float]] = {}
    with open_weights(source.path, config) as opened:
        weights, forms = UntiedWeights(opened) if config.tied else opened, Forms("int4")
        config = dataclasses.replace(config, tied=False)
        read = lambda name: weights.read(name).float()  # noqa: E731
        fitted = run_checkpoint(read, config, source.prompts, tokenizer, opened.num_parameters, keep_inputs=True)
        texts = {"export's text": [fitted.judged.ids]}
        if args.text is not None:
            texts[args.text.name] = pieces_of(args.text, tokenizer, args.tokens)
        all_pieces = [piece for pieces in texts.values() for piece in pieces]
        shape = placeholder_decoder(config, PIECE, torch.float32)
        with streamed(shape, read) as decoder:
            before = log_probabilities(decoder, all_pieces)
        print(f"{'':<20}" + "".join(f"{f'{name}: KL':>26}{'top-1':>8}" for name in texts) + f"{'MB':>8}{'s':>8}")
        for title, method in methods(config.num_layers).items():
            if args.only and title not in args.only:
                continue
            cost = {"bytes": 0.0, "seconds": 0.0}

            def exported(name: str, method: Fake = method, cost: dict[str, float] = cost) -> Tensor:
                weight, started = read(name), time.perf_counter()
                form = forms.of(name, tuple(weight.shape))
                if form is None:
                    return weight
                if name in (EMBEDDING, HEAD):
                    turned = weight.T if name == EMBEDDING else weight
                    found = quantise(turned, form).dequantise()
                    return found.T if name == EMBEDDING else found
                found, size_bytes = method(name, weight, fitted.inputs[name.removesuffix(".weight")].float())
                cost["bytes"] += size_bytes
                cost["seconds"] += time.perf_counter() - started
                return found

            with streamed(shape, exported) as decoder:
                after = log_probabilities(decoder, all_pieces)
            row, start = f"{title:<20}", 0
            for name, pieces in texts.items():
                part = slice(start, start + len(pieces))
                judged, start = judge(before[part], after[part]), part.stop
                row += f"{judged.mean_kl:>26.4f}{judged.top1:>8.1%}"
                report[f"{title}, {name}"] = {"mean_kl": judged.mean_kl, "top1": judged.top1, **cost}
            print(f"{row}{cost['bytes'] / 1e6:>8.1f}{cost['seconds']:>8.1f}", flush=True)
    print(json.dumps({"model": source.name, "int4": report}))


if __name__ == "__main__":
    main()
