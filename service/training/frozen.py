"""Networks of other programs as plain graphs: weights as they are, noise left out, cut in two at the latent.

Whatever wrote a network, a traced function of it is frozen here: calls are inlined and variables become constants. What
is kept is what the reconstruction needs, so that no Python, no state and no file is part of what is published.
"""

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import numpy as np
from tensorflow.core.framework.graph_pb2 import GraphDef
from tensorflow.python.eager import context
from tensorflow.python.framework import convert_to_constants, op_def_registry

from service.errors import ConfigurationError
from service.runtime.quiet import tf
from service.training.architecture import Autoencoder

NORMAL_NOISE = re.compile(r"(Stateless)?(RandomStandardNormal|RandomNormal|TruncatedNormal)(V2)?")
ADDS = frozenset({"Add", "AddV2"})
SHAPES = frozenset({"Shape", "Size", "Rank"})
"""Operations that look at the form of a tensor and not at its values."""
ALLOWED_STATE = re.compile(
    r"(ReadVariableOp|Assign(Add|Sub)?VariableOp|VarHandleOp|VarIsInitializedOp|VariableShape|DisableCopyOnRead"
    r"|ResourceGather(Nd)?|Placeholder|Assert|If|While|Case|(Stateful)?PartitionedCall|Random\w*|StatelessRandomGetAlg"
    r"|(Anonymous)?(Mutable)?HashTable(V2)?|LookupTable(Find|Import|Size)V2|InitializeTableV2)"
)
"""Operations with state that reach no further than the process."""
REACHES_OUT = re.compile(r"\w*(File|Dataset|PyFunc|Reader|Summary|Save|Restore|Checkpoint|Print|RandomDataset)\w*")
"""Operations without state that touch files or run Python."""
SMALL_CONSTANT = 256
"""Values of a constant that stays in the graph. Larger ones are weights, which the signatures of a version share."""
UNNUMBERED = re.compile(r"_\d+$")
POINTWISE = re.compile(
    r"(Identity|Cast|BiasAdd|AddV2?|Relu6?|LeakyRelu|Elu|Selu|Sigmoid|Tanh|Softplus|Softsign|Softmax|Maximum|Minimum|Mul"
    r"|Erf|Erfc|Neg|Exp|Sub|Squeeze|Reshape|L2Normalize)"
)
"""Operations that finish a layer: the latent is what the last of them gives."""


def dangers(functions: Mapping[str, Any], roots: Iterable[str], nodes: Iterable[Any] = ()) -> Iterator[str]:
    """Names of operations that touch more than the process's memory, in ``nodes`` and the functions that they call.

    Args:
        functions: FunctionDef by name.
        roots: names of functions that may be called.
    """
    seen, waiting = set[str](), [*roots]
    found = list(nodes)
    while found or waiting:
        for node in found:
            definition = op_def_registry.get(node.op)
            if definition is None:
                yield node.op
            elif node.op in functions:
                waiting.append(node.op)
            elif REACHES_OUT.fullmatch(node.op) or (definition.is_stateful and not ALLOWED_STATE.fullmatch(node.op)):
                yield node.op
            for attribute in node.attr.values():
                waiting += [each.name for each in (attribute.func, *attribute.list.func) if each.name]
        found = []
        if waiting and (name := waiting.pop()) not in seen:
            seen.add(name)
            found = list(functions[name].node_def) if name in functions else []


@dataclass(eq=False)
class FrozenGraph:
    """A network from a batch of rows to their reconstructions. Tensors are named as TensorFlow does: ``x:0``."""

    nodes: dict[str, Any]
    """NodeDef by name; without control inputs, and without those that the reconstruction does not need."""
    library: Any
    """FunctionDefLibrary of what is called by loops and conditions."""
    source: str
    target: str
    dtype: Any
    """Of ``source``."""
    weights: dict[str, Any] = field(default_factory=dict)
    """tf.Variable by the tensor that it stands for."""

    def run(self, feeds: Mapping[str, Any], fetches: Sequence[str]) -> list[Any]:
        """Tensors ``fetches``, computed from others. Builds graph when traced."""
        for function in self.library.function:  # loops call them, wherever they are traced
            if not context.context().has_function(function.signature.name):
                context.context().add_function_def(function)
        given = {**self.weights, **feeds}
        needed = self.needed(fetches, given)
        graph = GraphDef(node=[self.nodes[name] for name in needed.nodes], library=self.library)
        inputs = {tensor: tf.convert_to_tensor(given[tensor]) for tensor in needed.stops}
        asked = [tensor for tensor in fetches if tensor not in inputs]
        found = iter(tf.graph_util.import_graph_def(graph, inputs, asked, name="network") if asked else ())
        return [inputs[tensor] if tensor in inputs else next(found) for tensor in fetches]

    def inputs_of(self, name: str) -> list[str]:
        return [_tensor(each) for each in self.nodes[name].input]

    def needed(self, fetches: Sequence[str], stops: Collection[str]) -> "Needed":
        """Nodes that ``fetches`` are computed by, back to the ``stops``, and those of these that were met."""
        nodes, met, waiting = dict[str, None](), dict[str, None](), list(fetches)
        while waiting:
            tensor = waiting.pop()
            name = _node(tensor)
            if tensor in stops:
                met[tensor] = None
            elif name not in nodes:
                nodes[name] = None
                waiting += self.inputs_of(name)
        return Needed(list(nodes), list(met))


@dataclass(frozen=True, slots=True)
class Needed:
    nodes: list[str]
    stops: list[str]


def freeze(function: Any) -> FrozenGraph:
    """The graph of a concrete function of one tensor, rows first, that returns one tensor.

    Raises:
        ConfigurationError: it draws random numbers that are no noise around a mean, or keeps a state.
    """
    # Counters and seeds are whole numbers, and assigned to: they cannot be constants. Noise is left out below.
    state = {
        inner.name.split(":")[0]
        for outer, inner in function.graph.captures
        if any(outer is variable.handle and variable.dtype.is_integer for variable in function.graph.variables)
    }
    data = convert_to_constants._FunctionConverterDataInEager(
        func=function, lower_control_flow=False, aggressive_inlining=False, variable_names_denylist=state
    )
    graph, _ = convert_to_constants._replace_variables_by_constants(data)
    captured = {inner.name for _, inner in function.graph.captures}
    (source,) = [tensor for tensor in function.inputs if tensor.name not in captured]
    frozen = FrozenGraph(
        {node.name: _plain(node) for node in graph.node},
        graph.library,
        source.name,
        function.outputs[0].name,
        source.dtype,
    )
    _leave_noise_out(frozen)
    kept = frozen.needed([frozen.target], ()).nodes
    frozen.nodes = {name: frozen.nodes[name] for name in kept}
    _check_kept(frozen)
    _share_weights(frozen)
    return frozen


def _plain(node: Any) -> Any:
    """The node without control inputs, device and colocation."""
    inputs = [name for name in node.input if not name.startswith("^")]
    del node.input[:]
    node.input.extend(inputs)
    node.device = ""
    node.attr.pop("_class", None)
    return node


def _leave_noise_out(graph: FrozenGraph) -> None:
    """Put the mean in the place of normal noise: a variational network answers with the mean of its latent."""
    zeros = set[str]()
    for name in _in_order(graph):
        node = graph.nodes[name]
        inputs = graph.inputs_of(name)
        is_zero = [_node(each) in zeros or _is_zero(graph, each) for each in inputs]
        if NORMAL_NOISE.fullmatch(node.op):
            _become_zeros(graph, node)
            zeros.add(name)
        elif not any(_node(each) in zeros for each in inputs):
            continue
        elif node.op == "Mul" or (node.op in {"Identity", "Cast", "Reshape"}) or (node.op in ADDS and all(is_zero)):
            zeros.add(name)
        elif node.op in ADDS:
            _become_identity(node, inputs[is_zero.index(False)])


def _is_zero(graph: FrozenGraph, tensor: str) -> bool:
    node = graph.nodes[_node(tensor)]
    return node.op == "Const" and node.attr["dtype"].type not in _NOT_NUMBERS and not np.any(_value(node))


_NOT_NUMBERS = (tf.string.as_datatype_enum, tf.variant.as_datatype_enum, tf.resource.as_datatype_enum)


def _become_zeros(graph: FrozenGraph, node: Any) -> None:
    """The same shape, all zeros."""
    dtype = node.attr["dtype"].type
    shape = node.input[0]
    constant = type(node)(name=f"{node.name}_zero", op="Const")
    constant.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(0, tf.as_dtype(dtype)))
    constant.attr["dtype"].type = dtype
    graph.nodes[constant.name] = constant
    name, index_type = node.name, _shape_type(graph, shape)
    node.Clear()
    node.name, node.op = name, "Fill"
    node.input.extend([shape, constant.name])
    node.attr["T"].type = dtype
    node.attr["index_type"].type = index_type


def _shape_type(graph: FrozenGraph, tensor: str) -> int:
    producer = graph.nodes[_node(_tensor(tensor))]
    for attribute in ("out_type", "T", "dtype", "DstT"):
        if attribute in producer.attr:
            return int(producer.attr[attribute].type)
    return int(tf.int32.as_datatype_enum)


def _become_identity(node: Any, kept: str) -> None:
    dtype = node.attr["T"].type
    name = node.name
    node.Clear()
    node.name, node.op = name, "Identity"
    node.input.append(kept)
    node.attr["T"].type = dtype


def _in_order(graph: FrozenGraph) -> list[str]:
    """Names of the nodes, each after those that it takes from."""
    order, state = dict[str, None](), dict[str, bool]()
    waiting = [(_node(graph.target), False)]
    while waiting:
        name, is_done = waiting.pop()
        if is_done:
            order[name] = None
        elif name not in state:
            state[name] = True
            waiting.append((name, True))
            waiting += [(_node(each), False) for each in graph.inputs_of(name)]
    return list(order)


def _check_kept(graph: FrozenGraph) -> None:
    functions = {each.signature.name: each for each in graph.library.function}
    found = next(dangers(functions, (), graph.nodes.values()), None)
    if found is not None:
        raise ConfigurationError(f"Its answers need the operation {found}, which no version may have.")
    every = [*graph.nodes.values(), *(node for function in functions.values() for node in function.node_def)]
    random = next(
        (node for node in every if "Random" in node.op and not node.op.startswith("StatelessRandomGet")), None
    )
    if random is not None:
        raise ConfigurationError(
            f"It draws random numbers when it answers ({random.op} in {random.name}); a version answers the same twice."
        )
    kept = next((node for node in every if "Variable" in node.op or "Lookup" in node.op), None)
    if kept is not None:
        raise ConfigurationError(f"It keeps a state or a table ({kept.op} in {kept.name}), which cannot be frozen.")


def _share_weights(graph: FrozenGraph) -> None:
    """Large constants become variables, which every function made of the graph shares."""
    for name, node in list(graph.nodes.items()):
        if node.op == "Const" and node.attr["dtype"].type not in _NOT_NUMBERS:
            value = _value(node)
            if value.size > SMALL_CONSTANT:
                graph.weights[f"{name}:0"] = tf.Variable(value, trainable=False, name="weight")
                node.Clear()
                node.name, node.op = name, "Placeholder"  # always fed


def _value(node: Any) -> Any:
    return tf.make_ndarray(node.attr["value"].tensor)


def _tensor(text: str) -> str:
    return text if ":" in text else f"{text}:0"


def _node(tensor: str) -> str:
    return tensor.partition(":")[0]


# --- where the latent is ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Candidate:
    """A tensor that everything between row and reconstruction goes through."""

    tensor: str
    layer: str
    """Scope of the operation: the layer, where Keras wrote the graph."""
    op: str
    shape: tuple[int, ...]
    """Of one row."""
    dtype: Any

    @property
    def width(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, eq=False)
class GraphPart:
    """A part of a frozen graph, from one form of a row to others, in place of a Keras model of ``Autoencoder``."""

    graph: FrozenGraph
    source: str
    source_shape: tuple[int, ...]
    """Of one row, as the graph has it."""
    dtype: Any
    targets: tuple[str, ...]
    target_shapes: tuple[tuple[int, ...], ...]
    """Of one row, as it is given back."""
    forms: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Tensors that hold the shape of what ``source`` was made of, with all but the number of its rows."""
    keras: Any = None
    """The Keras model that the graph is of, where one may be kept for other tools."""

    def __call__(self, rows: Any, training: bool = False) -> Any:
        """(rows, anything of the right size) -> (rows, *target_shape), one or several."""
        return self._traced(rows) if tf.executing_eagerly() else self._call(rows)

    @cached_property
    def _traced(self) -> Any:
        return tf.function(self._call, autograph=False, reduce_retracing=True)

    def _call(self, rows: Any) -> Any:
        values = tf.reshape(rows, (-1, *self.source_shape))
        values = (
            tf.saturate_cast(tf.round(values), self.dtype) if self.dtype.is_integer else tf.cast(values, self.dtype)
        )
        count = tf.shape(values)[:1]
        feeds = {name: tf.concat([count, np.array(form, np.int32)], 0) for name, form in self.forms.items()}
        found = self.graph.run({self.source: values, **feeds}, self.targets)
        shaped = [
            tf.reshape(tf.cast(each, self._dtype), (-1, *shape))
            for each, shape in zip(found, self.target_shapes, strict=True)
        ]
        return shaped if len(shaped) > 1 else shaped[0]

    @property
    def _dtype(self) -> Any:
        return tf.float64 if self.graph.dtype == tf.float64 else tf.float32

    @property
    def output(self) -> Any:
        return tf.TensorSpec((None, *self.target_shapes[-1]), self._dtype)

    @property
    def variables(self) -> list[Any]:
        """As Keras variables: their ``value`` is what TensorFlow saves."""
        return [SimpleNamespace(value=weight) for weight in self.graph.weights.values()]

    def count_params(self) -> int:
        stops = self.graph.needed(self.targets, {self.source, *self.forms, *self.graph.weights}).stops
        return sum(int(tf.size(self.graph.weights[stop])) for stop in stops if stop in self.graph.weights)

    def save(self, path: Any) -> None:
        """Write the Keras model, where there is one."""
        if self.keras is not None:
            self.keras.save(path)


def cut(graph: FrozenGraph, latent: Candidate, row_shape: tuple[int, ...], *, keras: Any = None) -> Autoencoder:
    """The network and its two halves as the recipe has them; latents are flat.

    Raises:
        ConfigurationError: what follows the latent needs more of a row than its latent.
    """
    source, width = (graph.source, row_shape, graph.dtype), (latent.width,)
    return Autoencoder(
        network=GraphPart(graph, *source, (graph.target,), (row_shape,), keras=keras),
        encoder=GraphPart(graph, *source, (latent.tensor,), (width,)),
        decoder=GraphPart(
            graph,
            latent.tensor,
            latent.shape,
            latent.dtype,
            (graph.target,),
            (row_shape,),
            _forms(graph, latent, row_shape),
        ),
        whole=GraphPart(graph, *source, (latent.tensor, graph.target), (width, row_shape)),
        latent_dim=latent.width,
    )


def _forms(graph: FrozenGraph, latent: Candidate, row_shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Shapes of what the latent was made of, where something after it looks at them to know the number of rows."""
    after = graph.needed([graph.target], {latent.tensor})
    looked_at = {
        f"{name}:0": graph.inputs_of(name)[0]
        for name in after.nodes
        if graph.nodes[name].op == "Shape" and _node(graph.source) in graph.needed([f"{name}:0"], {latent.tensor}).nodes
    }
    measured = zip(looked_at, _measured(graph, list(looked_at.values()), row_shape), strict=True)
    forms = {name: found[0] for name, found in measured if found is not None}
    rest = graph.needed([graph.target], {latent.tensor, *forms})
    if _node(graph.source) in rest.nodes:
        raise ConfigurationError(
            f"What follows {latent.layer or latent.tensor} needs more of a row than what that gives: it is no latent."
        )
    return forms


def _names(candidate: Candidate) -> tuple[str, ...]:
    return candidate.layer, candidate.layer.rpartition("/")[2], _node(candidate.tensor)


def find_latent(cuts: Sequence[Candidate], *, features: int, layer: str | None = None) -> Candidate:
    """The narrowest place between a row and its reconstruction, or what the named layer gives.

    Raises:
        ConfigurationError: there is none.
    """
    listed = ", ".join(dict.fromkeys(candidate.layer for candidate in cuts if candidate.layer)) or "none"
    if layer is not None:
        # TensorFlow may have numbered a layer's own name.
        named = [each for each in cuts if layer in _names(each)] or [
            each for each in cuts if layer in (UNNUMBERED.sub("", name) for name in _names(each))
        ]
        if not named:
            raise ConfigurationError(
                f"No layer {layer} is all that lies between a row and its reconstruction; {listed} would do."
            )
        return named[-1]
    narrow = min((candidate.width for candidate in cuts), default=features)
    if narrow >= features:
        raise ConfigurationError(
            f"This is no autoencoder: nothing between a row and its reconstruction is narrower than the {features} "
            f"values of a row. --latent names the layer to take all the same; {listed} would do."
        )
    start = next(at for at, candidate in enumerate(cuts) if candidate.width == narrow)
    found = cuts[start]
    for candidate in cuts[start + 1 :]:  # what activates it belongs to the layer
        same = candidate.layer.startswith(found.layer) or found.layer.startswith(candidate.layer or "?")
        if candidate.width != narrow or not same or not POINTWISE.fullmatch(candidate.op):
            break
        found = candidate
    return found


def find_cuts(graph: FrozenGraph, row_shape: tuple[int, ...]) -> list[Candidate]:
    """Tensors that every path from the rows to the reconstruction goes through, in order."""
    order = [name for name in _in_order(graph) if name in graph.nodes]
    source, target = _node(graph.source), _node(graph.target)
    into, consumers = {source: 1}, dict[str, list[str]]()
    for name in order:
        if name == source:
            continue
        inputs = [] if graph.nodes[name].op in SHAPES else [_node(each) for each in graph.inputs_of(name)]
        into[name] = sum(into.get(each, 0) for each in inputs)
        for each in inputs:
            consumers.setdefault(each, []).append(name)
    out = {target: 1}
    for name in reversed(order):
        if name != target:
            out[name] = sum(out.get(each, 0) for each in consumers.get(name, ()))
    every = into.get(target, 0)
    names = [name for name in order if every and into[name] * out[name] == every and name not in (source, target)]
    # A cut is one tensor: an operation of several outputs whose others are used as well is none.
    used = dict[str, set[str]]()
    for name in order:
        for each in graph.inputs_of(name):
            used.setdefault(_node(each), set()).add(each)
    tensors = [next(iter(used[name])) for name in names if len(used.get(name, ())) == 1]
    tensors = [tensor for tensor in tensors if tensor not in graph.weights]
    return [
        Candidate(tensor, _layer_of(tensor), graph.nodes[_node(tensor)].op, *measured)
        for tensor, measured in zip(tensors, _measured(graph, tensors, row_shape), strict=True)
        if measured is not None
    ]


def _layer_of(tensor: str) -> str:
    return _node(tensor).rpartition("/")[0].replace("StatefulPartitionedCall/", "")


def _measured(
    graph: FrozenGraph, tensors: Sequence[str], row_shape: tuple[int, ...]
) -> list[tuple[tuple[int, ...], Any] | None]:
    """Shape of one row and type of each tensor; None where it has no rows first, or holds no fractions."""
    run = tf.function(lambda x: graph.run({graph.source: x}, tensors), autograph=False)
    found = list[tuple[tuple[int, ...], Any] | None]()
    for two, three in zip(*(run(tf.zeros((rows, *row_shape), graph.dtype)) for rows in (2, 3)), strict=True):
        fits = two.dtype.is_floating and two.shape.rank > 1 and two.shape[0] == 2 and three.shape[0] == 3
        found.append((tuple(two.shape[1:]), two.dtype) if fits and two.shape[1:] == three.shape[1:] else None)
    return found
