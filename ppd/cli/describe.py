"""A bundle in words: what `ppd inspect`, `ppd check` and the end of an export print."""

from collections.abc import Sequence

from ppd.bundle import LATENCY_FILE, Bundle
from ppd.calibrate.latency import Latency
from ppd.calibrate.record import TogetherInfo, measured_from_bundle, together_from_bundle
from ppd.cli.app import shown
from ppd.decision import CALIBRATED, CALIBRATED_ELSEWHERE, CalibrationInfo, Decision, EstimateInfo, RooflineInfo
from ppd.manifest import CheckInfo, DamageInfo, EngineInfo, Manifest
from ppd.memory import whole_cache
from ppd.runtime.abilities import cannot
from ppd.runtime.drafters.sources import drafts_always, sources_of
from ppd.signature import FUSED_HEAD_MULTIPLE, WEIGHTS_FILE, takes_fused_attention
from ppd.targets import load_targets
from ppd.tree import Rows

_GUESSERS = ("prompt tokens", "guess heads")


def describe_bundle(bundle: Bundle) -> str:
    """Model, tree drawn as text, check, provenance and files of a bundle."""
    manifest = bundle.manifest
    model = manifest.model
    lines = [
        f"model          {model.name} ({model.architecture}) from {model.source}{_at(model.revision)}"
        f"{f', SHA-256 {model.sha256}' if model.sha256 else ''}",
        f"shape          {model.num_parameters:,} parameters, {model.num_layers} layers, hidden {model.hidden_size}, "
        f"{model.num_heads} heads, {model.num_kv_heads} KV heads of {model.head_dim}, vocabulary {model.vocab_size}",
        f"context        {manifest.context} tokens; EOS ids {', '.join(map(str, manifest.eos_ids)) or 'none'}",
        *_cannot_lines(bundle),
        f"target         {manifest.target}, {manifest.precision}",
        *_graph_lines(manifest),
        f"{_guesser(manifest)}, {manifest.guesser_bytes:,} bytes",
        f"check          {describe_check(manifest.check)}",
        *describe_damage(manifest.damage),
        *_speed_lines(manifest.decision),
        _sources_line(bundle),
        f"provenance     {', '.join(f'{name} {value}' for name, value in manifest.provenance.items())}",
        *_record_lines(bundle),
        *_engine_lines(manifest),
        "",
        *_tree_lines(bundle),
        "",
        "files",
        *(f"  {entry.path:<28} {entry.size_bytes:>14,} bytes" for entry in manifest.files.values()),
    ]
    return "\n".join(map(shown, lines))


def describe_export(
    bundle: Bundle,
    weights_bytes: int,
    added_parameters: int,
    added_bytes: int,
    unquantised: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> str:
    """The summary at the end of an export.

    Args:
        weights_bytes: Size of the graph and its weights.
        added_parameters: Size of prompt tokens or guess heads, in parameters.
        added_bytes: Size of these and of the tree tables.
        unquantised: Projections that the precision leaves as they are.
        notes: What its user should know besides.
    """
    manifest = bundle.manifest
    model, prompts, tree = manifest.model, manifest.prompt_tokens, manifest.tree
    per_state = "; ".join(
        f"state {state}: {rows} rows, {tree.num_candidates[state]} candidates" for state, rows in tree.num_rows.items()
    )
    lines = [
        f"bundle         {bundle.folder}",
        f"model          {model.name} ({model.architecture}), {model.num_parameters:,} parameters, "
        f"context {manifest.context}",
        f"target         {manifest.target}, {manifest.precision}",
        *_graph_lines(manifest),
        f"{_guesser(manifest)}: {added_parameters:,} numbers, "
        f"{_percent(added_parameters / model.num_parameters)} of the parameters",
        f"tree           {f'{tree.source}; {per_state}' if tree.drafts else 'none: plain decoding only'}",
        f"size           {weights_bytes / 1e6:,.1f} MB graph and weights",
        f"added          {added_bytes:,} bytes for {_GUESSERS[manifest.guess_heads is not None]} and tree, "
        f"{_percent(added_bytes / weights_bytes)}",
        f"check          {describe_check(manifest.check)}",
        *describe_damage(manifest.damage),
    ]
    lines += _speed_lines(manifest.decision) if manifest.decision.draft is not None else []
    lines.append(_sources_line(bundle))
    lines += _record_lines(bundle)
    lines += _engine_lines(manifest)
    lines += _cannot_lines(bundle)
    lines += [f"note           {note}" for note in notes]
    if unquantised:
        lines.append(f"note           not quantised, as no block divides their inputs: {', '.join(unquantised)}")
    if "BUILD.md" in manifest.files:
        lines.append(f"note           build the engine on {manifest.target} itself: BUILD.md in the bundle says how")
    if prompts.status == "untrained" and tree.drafts:
        lines.append("note           untrained prompt tokens guess poorly; ppd train makes others, for --prompt-tokens")
    return "\n".join(lines)


def _guesser(manifest: Manifest) -> str:
    """What guesses, and where it came from."""
    heads, prompts = manifest.guess_heads, manifest.prompt_tokens
    if heads is not None:
        kind = f"{heads.kind}, projection {heads.projection}"
        return f"guess heads    {heads.count} trained ({kind}; {heads.source}{_at(heads.revision)})"
    tier = f"{prompts.tier}; " if prompts.has_layers else ""
    return f"prompt tokens  {prompts.count} {prompts.status} ({tier}{prompts.source}{_at(prompts.revision)})"


def _cannot_lines(bundle: Bundle) -> list[str]:
    """What it cannot do."""
    return [f"{'cannot' if i == 0 else '':<15}{what}" for i, what in enumerate(cannot(bundle))]


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"


def _graph_lines(manifest: Manifest) -> list[str]:
    """A line on why ONNX Runtime runs the standard graph's attention, if it does although the bundle is for a CPU."""
    target = load_targets().get(manifest.target)
    fused = takes_fused_attention(manifest.model.head_dim)
    if fused or target is None or target.compute_capability is not None:
        return []
    return [
        "graph          with standard attention: ONNX Runtime's fused one takes head sizes of multiples of "
        f"{FUSED_HEAD_MULTIPLE}, not {manifest.model.head_dim}"
    ]


def describe_damage(damage: DamageInfo | None) -> list[str]:
    """A line about what the precision costs, if it was measured."""
    if damage is None:
        return []
    return [
        f"damage         perplexity {damage.perplexity_before:.2f} before, {damage.perplexity:.2f} as exported; best "
        f"token the same at {100 * damage.top1_agreement:.1f} % of {damage.num_tokens} tokens ({damage.text}), mean KL "
        f"{damage.mean_kl:.2g} nats"
    ]


def describe_check(check: CheckInfo) -> str:
    """The outcome of a check against PyTorch's answers."""
    return (
        f"{check.engine}: {check.num_rows} rows agree with PyTorch, largest difference of a logit "
        f"{check.max_difference:.2g} (allowed {check.tolerance:.2g}), {check.near_ties} near-ties"
    )


def describe_calibration(bundle: Bundle) -> str:
    """What a calibration found, its tree, and what it comes to: faster here, slower, or no difference was seen."""
    info, together = bundle.manifest.decision.record, together_from_bundle(bundle)
    assert isinstance(info, CalibrationInfo), "the bundle was calibrated"
    found = [_sources_line(bundle), *_calibration_lines(info), *_together_lines(together), "", *_tree_lines(bundle)]
    return "\n".join([*map(shown, found), "", *map(shown, _verdict_lines(bundle, info, together))])


def _verdict_lines(bundle: Bundle, info: CalibrationInfo, together: TogetherInfo | None) -> list[str]:
    found, what = (info, "the tree at every step") if together is None else (together, _together_words(together))
    lines = [
        f"verdict        {_seen(found)}: {found.measured_speedup:.3f} times ({found.speedup_low:.3f} to "
        f"{found.speedup_high:.3f}), {what}" + ("; --plain never drafts" if found.speedup_high < 1 else "")
    ]
    if not bundle.manifest.decision.draft:
        lines.append("               the tree does not pay here, so that its guesses are left out")
    if not measured_from_bundle(bundle).latency.stable:
        lines.append("               the times still moved at the end: more --minutes make it surer")
    return [*lines, f"               ppd inspect {bundle.folder} shows all that was measured"]


def _seen(found: CalibrationInfo | TogetherInfo) -> str:
    """What the interval of a speed-up says."""
    if found.speedup_low > 1:
        return "faster than plain decoding"
    return "slower than plain decoding" if found.speedup_high < 1 else "no difference from plain decoding was seen"


def _together_words(info: TogetherInfo) -> str:
    return f"{', '.join(info.sources)} together, step by step"


def draw_rows(rows: Rows) -> str:
    """Draw one state: a line per node with its rank and its prompt rows, children indented below their parent."""
    lines = [f"root  {_prompts(rows.nodes[0].prompts)}".rstrip()]

    def draw(row: int, indent: str) -> None:
        for child in rows.children[row]:
            last = child == rows.children[row][-1]
            node = rows.nodes[child]
            lines.append(f"{indent}{'└─' if last else '├─'} {node.path[-1]}  {_prompts(node.prompts)}".rstrip())
            draw(child, indent + ("   " if last else "│  "))

    draw(0, "")
    return "\n".join(lines)


def _tree_lines(bundle: Bundle) -> list[str]:
    info = bundle.manifest.tree
    if not info.drafts:
        return ["tree           none: plain decoding only"]
    lines = [f"tree           {info.source}; numbers are ranks of guesses, * are prompt rows"]
    for state in sorted(bundle.tree.states):
        rows = bundle.tree.rows[state]
        lines += [f"  state {state}: {rows.num_rows} rows, {rows.num_candidates} candidates"]
        lines += [f"    {line}" for line in draw_rows(rows).splitlines()]
    return lines


def _record_lines(bundle: Bundle) -> list[str]:
    """The record behind the decision. A calibration of another device is shown with the decision itself."""
    decision = bundle.manifest.decision
    if isinstance(decision.record, EstimateInfo):
        return _estimate_lines(decision.record)
    if isinstance(decision.record, CalibrationInfo) and decision.basis == CALIBRATED:
        if not bundle.has(LATENCY_FILE):
            return _calibration_lines(decision.record)
        together, latency = together_from_bundle(bundle), measured_from_bundle(bundle).latency
        return [*_calibration_lines(decision.record), *_together_lines(together), *_latency_lines(latency)]
    return []


def _estimate_lines(info: EstimateInfo) -> list[str]:
    lines = _curve_lines(info) if info.roofline is None else _roofline_lines(info.roofline)
    if info.marginals is None:
        lines.append("               acceptance unknown, so the tree is not chosen for the device")
    else:
        lines.append(
            f"               acceptance length {info.acceptance_length:.3f} ({info.marginals.source}), "
            f"speed-up {info.speedup:.2f}"
        )
    lines.append("               run ppd calibrate on the device")
    return lines + ([f"warning        {info.warning}"] if info.warning else [])


def _roofline_lines(info: RooflineInfo) -> list[str]:
    memory = info.weights_ms + info.cache_ms
    turn = int(memory / info.compute_ms_per_row)
    return [
        f"estimate       not measured: N rows take {info.overhead_ms:.3g} + max({info.weights_ms:.3g} weights + "
        f"{info.cache_ms:.3g} cache of {info.cache_len} rows, N x {info.compute_ms_per_row:.3g} compute) ms",
        f"               memory bounds N = 1 to {turn}, compute more"
        if turn
        else "               compute bounds every N",
    ]


def _curve_lines(info: EstimateInfo) -> list[str]:
    points = ", ".join(
        f"{value:.2f} at {size}" for size, value in zip(info.curve.sizes, info.curve.values, strict=True)
    )
    return [
        f"estimate       not measured here: time of N rows against one is {points}",
        f"               measured with {info.curve.source}",
    ]


def _calibration_lines(info: CalibrationInfo) -> list[str]:
    lines = [
        f"calibration    {info.created} with {info.engine} on {info.machine}, {info.num_prompts} prompts",
        f"               acceptance length {info.predicted_acceptance_length:.3f} predicted, "
        f"{info.measured_acceptance_length:.3f} measured",
        f"               drafting against plain decoding: {info.predicted_speedup:.3f} predicted, "
        f"{info.measured_speedup:.3f} measured ({info.speedup_low:.3f} to {info.speedup_high:.3f})",
    ]
    return lines + ([f"               differs by over 10 %: {info.remark}"] if info.remark else [])


def _together_lines(info: TogetherInfo | None) -> list[str]:
    if info is None:
        return []
    return [
        f"               {_together_words(info)}: {info.predicted_speedup:.3f} predicted, "
        f"{info.measured_speedup:.3f} measured ({info.speedup_low:.3f} to {info.speedup_high:.3f}); acceptance length "
        f"{info.predicted_acceptance_length:.3f} predicted, {info.measured_acceptance_length:.3f} measured"
    ]


def _latency_lines(latency: Latency) -> list[str]:
    lines = ["latency        rows, then ms per step at each cache length; share of LM head and TopK beyond row 1"]
    if not latency.stable:
        lines.append("               unstable: the medians still moved when the time was up; give more --minutes")
    lines.append(
        f"               host time in it: {latency.host_ms[0]:.3f} ms at {latency.sizes[0]} row, "
        f"{latency.host_ms[-1]:.3f} ms at {latency.sizes[-1]}"
    )
    lines.append("               cached rows: " + ", ".join(map(str, latency.cache_lens)))
    for size, times, share in zip(latency.sizes, latency.milliseconds.T, latency.head_share, strict=True):
        lines.append(f"               {size:4}  {'  '.join(f'{time:8.3f}' for time in times)}  {share:4.0%}")
    return lines


def _prompts(count: int) -> str:
    return "*" * count


def _at(revision: str | None) -> str:
    return f" at {revision}" if revision else ""


def _expected_speed(decision: Decision) -> str:
    if decision.draft is None:
        return "not measured on a device; ppd bench measures it"
    if decision.basis == CALIBRATED and isinstance(decision.record, CalibrationInfo):
        return f"the tree at every step: {_seen(decision.record)}"
    faster = "drafting" if decision.draft else "plain decoding"
    if decision.basis == CALIBRATED_ELSEWHERE:
        return f"{faster} was measured to be faster where the tree was calibrated"
    return f"{faster} is estimated to be faster"


def _sources_line(bundle: Bundle) -> str:
    sources = ", ".join(sorted(sources_of(bundle)))
    how = "at every step" if drafts_always(bundle, "auto") else "each step takes those that promise most, or none"
    return f"drafts from    {sources}: {how}"


def _speed_lines(decision: Decision) -> list[str]:
    """What `draft="auto"` rests on; and, where that was not measured on this device, how to change it."""
    lines = [f"speed-up       {_expected_speed(decision)}"]
    info = decision.record
    if decision.basis == CALIBRATED_ELSEWHERE and isinstance(info, CalibrationInfo):
        lines.append(
            f"               drafting against plain decoding there: {info.predicted_speedup:.3f} predicted, "
            f"{info.measured_speedup:.3f} measured ({info.created[:10]}, {info.engine} on {info.machine})"
        )
    if decision.draft is not None and decision.basis != CALIBRATED:
        lines.append("               measure this device with ppd calibrate, or say --draft always or --plain")
    return lines


def _engine_lines(manifest: Manifest) -> list[str]:
    return [describe_engine(info) for info in manifest.engines]


def describe_fixed_cache(info: EngineInfo, manifest: Manifest) -> str:
    """What the whole cache costs an engine that reads it in every step, beside the weights; "" if that is little."""
    weights_bytes = manifest.files[WEIGHTS_FILE].size_bytes
    cache = whole_cache(manifest.model, manifest.graph_type, info.capacity, weights_bytes)
    if info.lowered or not cache.is_much:
        return ""
    return f"note: this engine reads {cache.words}; export with a smaller --context if that is enough"


def describe_engine(info: EngineInfo) -> str:
    """One line about a built engine."""
    where = f"on {info.gpu}" if info.gpu is not None else "ahead of time"
    where += f" in the power mode {info.power_mode}" if info.power_mode else ""
    checked = "checked against the reference" if info.checked else "unchecked: run ppd check on the device"
    attention = "attention may run in parts" if info.decomposable or info.lowered else "fused attention"
    scratch = "" if info.scratch_bytes is None else f" and {info.scratch_bytes / 1e6:.1f} MB of scratch memory"
    return (
        f"engine {info.key}: {info.flavour} {info.version}, built {where} for compute capability "
        f"{info.compute_capability}, {info.precision}, {attention}, up to {info.max_decode_rows} rows, "
        f"{info.size_bytes / 1e6:.1f} MB{scratch}; {checked}"
    )
