"""What a model takes on a device: the bytes of its weights at each precision and of its cache, by arithmetic.

    python benchmarks/sizes.py [MODEL_FOLDER...] [--context N]

Without a folder, for the shapes of make_model.py. A folder needs no more than its config.json. The bytes of the weights
are those of model.onnx.data, but for the padding between tensors. Prints a table for each model, then one JSON line.
"""

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path

import torch
from make_model import SHAPES, write_configs

from ppd.export.forms import EMBEDDING, Forms
from ppd.models.config import ModelConfig, read_config
from ppd.models.decoder import Decoder
from ppd.signature import max_capacity

# The types of graphs: what is not quantised is 16 bits wide on a GPU, and 32 on a CPU but for fp16.
GRAPHS = {"fp32": 4, "fp16": 2, "int8": 4, "int8 (GPU)": 2, "int4": 4, "int4 (GPU)": 2}


def weight_bytes(config: ModelConfig, precision: str, item_bytes: int, context: int) -> int:
    """Bytes of all weights with their scales, and of the rotary tables.

    Args:
        config: The model.
        precision: "fp32", "fp16", "int8" or "int4".
        item_bytes: Of a number that is not quantised.
        context: Tokens that prompt and answer may fill.
    """
    forms = Forms(precision, for_tensorrt=precision != "fp32" and item_bytes == 2)
    if forms.quantise:  # a tied table is stored for each of its uses
        config = dataclasses.replace(config, tied=False)
    with torch.device("meta"):
        decoder = Decoder(config, context)
    total = (decoder.cos.numel() + decoder.sin.numel()) * item_bytes
    for name, weight in decoder.state_dict().items():
        form, count = forms.of(name, tuple(weight.shape)), weight.numel()
        if form is None:
            total += count * item_bytes
            continue
        num_scales = len(weight) if name == EMBEDDING else count // (form.block or len(weight))
        total += count * form.bits // 8 + num_scales * item_bytes + num_scales // 2 * form.zero_points
    return total


def cache_bytes(config: ModelConfig, item_bytes: int, context: int) -> int:
    """Bytes of the KV cache at its full length."""
    return config.num_layers * 2 * config.num_kv_heads * config.head_dim * max_capacity(context) * item_bytes


def main() -> None:
    """Print the sizes of every model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--context", type=int, default=2048)
    args = parser.parse_args()
    configs = {str(folder): read_config(folder) for folder in args.folders} or known_configs()
    report = {}
    for name, config in configs.items():
        print(f"{name}: {args.context} tokens of context; MB")
        print(f"  {'':<12}{'weights':>10}{'cache':>10}{'together':>10}")
        for title, item_bytes in GRAPHS.items():
            weights = weight_bytes(config, title.partition(" ")[0], item_bytes, args.context)
            cache = cache_bytes(config, item_bytes, args.context)
            report[f"{name}, {title}"] = {"weights": weights, "cache": cache}
            print(f"  {title:<12}" + "".join(f"{size / 1e6:>10.0f}" for size in (weights, cache, weights + cache)))
    print(json.dumps({"sizes_bytes": report, "context": args.context}))


def known_configs() -> dict[str, ModelConfig]:
    """The shapes of make_model.py."""
    found = {}
    for name, shape in SHAPES.items():
        with tempfile.TemporaryDirectory() as folder:
            write_configs(shape, Path(folder))
            found[name] = read_config(Path(folder))
    return found


if __name__ == "__main__":
    main()
