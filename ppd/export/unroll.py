"""Unroll: a graph that was traced with two layers becomes one with as many as the model has.

Tracing takes time by the layer and every layer is the same code, so that it is traced twice and copied.

1. Layer 1 is the nodes between the first and the last that the tracer noted under `decoder.blocks.1`; layer 0 likewise.
   Both have the same operators with the same attributes.
2. From outside, layer 1 reads its weights, its cache, the hidden rows of layer 0, and what all layers share. It gives
   out its hidden rows and its cache, and nothing else.
3. A copy for layer i reads and gives out the same under i's names, and the hidden rows of layer i - 1.
4. What read the hidden rows of layer 1 behind it reads those of the last layer.
"""

import onnx_ir as ir

from ppd.errors import ExportError
from ppd.signature import PARAMETER_PREFIX

TRACED_LAYERS = 2
"""The first layer reads embeddings, the second what every further one reads."""
_TEMPLATE = 1
_SCOPES = "pkg.torch.onnx.name_scopes"


def unroll(model: ir.Model, num_layers: int) -> None:
    """Repeat the second layer of a traced graph, in place; see the module's rules.

    Args:
        model: The graph of a decoder with `min(2, num_layers)` layers, with the tracer's notes.
        num_layers: L.

    Raises:
        ExportError: The layers are not laid out as the rules say: the tracer changed.
    """
    if num_layers <= TRACED_LAYERS:
        return
    first, template = _layer(model.graph, 0), _layer(model.graph, _TEMPLATE)
    if [_kind(node) for node in first] != [_kind(node) for node in template]:
        raise ExportError("the traced layers differ from each other; use the torch version of constraints.txt")
    _Unrolling(model.graph, first[-1].outputs[0], template).run(num_layers)


class _Unrolling:
    """The copying of one layer."""

    def __init__(self, graph: ir.Graph, hidden: ir.Value, template: list[ir.Node]) -> None:
        self._graph, self._template = graph, template
        self._read, self._given = hidden, template[-1].outputs[0]
        self._caches = [f"{kind}_{_TEMPLATE}" for kind in "kv"]
        self._require_closed()

    def run(self, num_layers: int) -> None:
        behind = [use for use in self._given.uses() if use.node not in self._template]
        hidden, last = self._given, self._template[-1]
        for layer in range(TRACED_LAYERS, num_layers):
            nodes, hidden = self._copy(layer, hidden)
            self._graph.insert_after(last, nodes)
            last = nodes[-1]
        for node, index in behind:
            node.replace_input_with(index, hidden)

    def _require_closed(self) -> None:
        """Rule 2."""
        outputs = {f"{name}_out" for name in self._caches}
        for value in (value for node in self._template for value in node.outputs):
            leaves = value.is_graph_output() or any(use.node not in self._template for use in value.uses())
            if leaves and value is not self._given and value.name not in outputs:
                raise ExportError(f"{value.name} leaves its layer; use the torch version of constraints.txt")
        if not any(self._read in node.inputs for node in self._template):
            raise ExportError("layer 1 does not read layer 0; use the torch version of constraints.txt")

    def _copy(self, layer: int, hidden: ir.Value) -> tuple[list[ir.Node], ir.Value]:
        values: dict[ir.Value, ir.Value] = {self._read: hidden}
        nodes = []
        for node in self._template:
            copy = ir.Node(
                node.domain,
                node.op_type,
                [None if value is None else self._input(value, layer, values) for value in node.inputs],
                node.attributes.values(),
                num_outputs=len(node.outputs),
                name=f"{node.name}_{layer}",
            )
            for old, new in zip(node.outputs, copy.outputs, strict=True):
                self._name_output(old, new, layer)
                values[old] = new
            nodes.append(copy)
        return nodes, values[self._given]

    def _input(self, value: ir.Value, layer: int, values: dict[ir.Value, ir.Value]) -> ir.Value:
        if value not in values:
            values[value] = self._outside(value, layer)
        return values[value]

    def _outside(self, value: ir.Value, layer: int) -> ir.Value:
        """A weight or a cache of this layer; anything else is shared."""
        prefix = f"{PARAMETER_PREFIX}blocks.{_TEMPLATE}."
        name = value.name or ""
        if name.startswith(prefix):
            weight = _like(value, f"{PARAMETER_PREFIX}blocks.{layer}.{name.removeprefix(prefix)}")
            weight.const_value = value.const_value
            self._graph.register_initializer(weight)
            return weight
        if name in self._caches:
            cache = _like(value, f"{name[0]}_{layer}")
            self._graph.inputs.append(cache)
            return cache
        return value

    def _name_output(self, old: ir.Value, new: ir.Value, layer: int) -> None:
        new.type, new.shape = old.type, old.shape
        name = old.name or ""
        if name in (f"{cache}_out" for cache in self._caches):
            new.name = f"{name[0]}_{layer}_out"
            self._graph.outputs.append(new)
        else:
            new.name = f"{name}_{layer}"


def _layer(graph: ir.Graph, layer: int) -> list[ir.Node]:
    """Rule 1. The tracer leaves some nodes between them unnoted."""
    scope = f"'{PARAMETER_PREFIX}blocks.{layer}'"
    nodes = list(graph)
    places = [i for i, node in enumerate(nodes) if scope in node.metadata_props.get(_SCOPES, "")]
    if not places:
        raise ExportError(f"the tracer noted no nodes of layer {layer}; use the torch version of constraints.txt")
    return nodes[places[0] : places[-1] + 1]


def _kind(node: ir.Node) -> tuple[str, str, list[str]]:
    return node.domain, node.op_type, sorted(str(attribute) for attribute in node.attributes.values())


def _like(value: ir.Value, name: str) -> ir.Value:
    return ir.Value(name=name, type=value.type, shape=value.shape)
