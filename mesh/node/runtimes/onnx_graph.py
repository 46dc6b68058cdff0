"""What an ONNX file's graph may do: whether the time of a run can depend on the values of its inputs.

Owns reading the few fields of the file that say so (ModelProto of onnx.proto, by its field numbers); weights are passed
over, and the package `onnx` is not needed. What a run costs is `mesh.node.gauge`'s.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MAX_FIELDS: Final = 3_000_000
"""That are read of a file: two seconds of a thread. The largest models have some hundred thousand."""


class NotOnnx(Exception):
    """The bytes are no ONNX model as far as they were read."""


def is_even(path: Path) -> bool:
    """Tell whether runs on inputs of equal shapes do equal work. False for a file that cannot be read. Blocks."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            return even(mapped)
    except (OSError, ValueError, BufferError):
        return False


def even(data: bytes | mmap.mmap) -> bool:
    """Tell it of the bytes of a ModelProto. False for any other bytes. O(nodes + weights), not their bytes."""
    with memoryview(data) as whole:
        walk = _Walk()
        try:
            graphs = list(walk.sub(whole, _MODEL_GRAPH))
            # Functions of the model's own may take the names of operators.
            return len(graphs) == 1 and not list(walk.sub(whole, _MODEL_FUNCTION)) and _graph_is_even(graphs[0], walk)
        except NotOnnx:
            return False


def _graph_is_even(graph: memoryview, walk: _Walk) -> bool:
    """Follow, from node to node, which tensors hold no value of a caller: weights, constants, and shapes of others."""
    fixed: set[bytes] = {b""}
    for tensor in walk.sub(graph, _GRAPH_INITIALIZER):
        fixed.update(bytes(name) for name in walk.sub(tensor, _TENSOR_NAME))
    for value in walk.sub(graph, _GRAPH_INPUT):
        # What has a weight for its default may be given by callers.
        fixed.difference_update([bytes(name) for name in walk.sub(value, _VALUE_NAME)])
    for each in walk.sub(graph, _GRAPH_NODE):
        node = _node(each, walk)
        deciding = _OPS.get(node.op) if node.domain in _DOMAINS else None
        if deciding is None:
            return False
        if any(node.inputs[at] not in fixed for at in deciding if at < len(node.inputs)):
            return False
        if node.op in _SHAPES or (node.op not in _RANDOM and all(name in fixed for name in node.inputs)):
            fixed.update(node.outputs)
    return True


@dataclass(frozen=True, slots=True)
class _Node:
    op: bytes
    domain: bytes
    inputs: Sequence[bytes]
    outputs: Sequence[bytes]


def _node(data: memoryview, walk: _Walk) -> _Node:
    inputs: list[bytes] = []
    outputs: list[bytes] = []
    op = domain = b""
    for field, value in walk.fields(data):
        if field == _NODE_INPUT:
            inputs.append(bytes(value))
        elif field == _NODE_OUTPUT:
            outputs.append(bytes(value))
        elif field == _NODE_OP:
            op = bytes(value)
        elif field == _NODE_DOMAIN:
            domain = bytes(value)
    return _Node(op, domain, inputs, outputs)


class _Walk:
    """Reads protobuf messages, `MAX_FIELDS` of theirs at most."""

    def __init__(self) -> None:
        self._left = MAX_FIELDS

    def sub(self, data: memoryview, wanted: int) -> Iterator[memoryview]:
        """Yield the values of one field. Raises `NotOnnx`."""
        return (value for field, value in self.fields(data) if field == wanted)

    def fields(self, data: memoryview) -> Iterator[tuple[int, memoryview]]:
        """Yield the fields that have a length, in order: number and value. Raises `NotOnnx`."""
        position, end = 0, len(data)
        while position < end:
            self._left -= 1
            if self._left < 0:
                raise NotOnnx("it has too many fields")
            tag, position = _varint(data, position)
            kind = tag & 7
            if kind == 0:
                _, position = _varint(data, position)
                continue
            if kind == 2:
                size, position = _varint(data, position)
            elif kind in {1, 5}:
                size = 8 if kind == 1 else 4
            else:
                raise NotOnnx(f"it has a field of wire type {kind}")
            if size > end - position:
                raise NotOnnx("a field is longer than what holds it")
            if kind == 2:
                yield tag >> 3, data[position : position + size]
            position += size


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position >= len(data) or shift > 63:
            raise NotOnnx("a number does not end")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


_MODEL_GRAPH: Final = 7
_MODEL_FUNCTION: Final = 25
_GRAPH_NODE: Final = 1
_GRAPH_INITIALIZER: Final = 5
_GRAPH_INPUT: Final = 11
_NODE_INPUT: Final = 1
_NODE_OUTPUT: Final = 2
_NODE_OP: Final = 4
_NODE_DOMAIN: Final = 7
_TENSOR_NAME: Final = 8
_VALUE_NAME: Final = 1
"""Field numbers of onnx.proto: ModelProto.graph, GraphProto.node and so on. They never change."""

_DOMAINS: Final = frozenset({b"", b"ai.onnx", b"ai.onnx.ml"})
"""Whose operators are known here; any other's may do anything."""

_SHAPES: Final = frozenset({b"Shape", b"Size"})
"""What they give is as fixed as the shapes of the caller's tensors are."""

_RANDOM: Final = frozenset({b"RandomNormal", b"RandomUniform"})

_PLAIN: Final = """
Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization BitShift BitwiseAnd BitwiseNot
BitwiseOr BitwiseXor Cast CastLike Ceil Celu Clip Col2Im Concat Constant Conv ConvInteger ConvTranspose Cos Cosh CumSum
DepthToSpace DequantizeLinear Det Div Dropout DynamicQuantizeLinear Einsum Elu Equal Erf Exp EyeLike Flatten Floor
Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual
GridSample GroupNormalization HardSigmoid HardSwish Hardmax Identity InstanceNormalization IsInf IsNaN LRN
LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax LpNormalization LpPool MatMul MatMulInteger Max MaxPool
Mean MeanVarianceNormalization Min Mish Mod Mul Neg Not Or PRelu Pow QLinearConv QLinearMatMul QuantizeLinear
RMSNormalization RandomNormal RandomNormalLike RandomUniform RandomUniformLike Reciprocal Relu Round ScatterElements
ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size Softmax SoftmaxCrossEntropyLoss Softplus Softsign
SpaceToDepth Sqrt Sub Sum Swish Tan Tanh ThresholdedRelu Transpose Trilu Where Xor
ArrayFeatureExtractor Binarizer FeatureVectorizer Imputer LinearClassifier LinearRegressor Normalizer
OneHotEncoder SVMClassifier SVMRegressor Scaler TreeEnsemble TreeEnsembleClassifier TreeEnsembleRegressor
""".split()  # noqa: SIM905 - a hundred quoted names read worse
"""Operators (of ONNX 1.18 and its ai.onnx.ml) whose work follows from the shapes of what they are given."""

_BY_INPUT: Final[dict[str, tuple[int, ...]]] = {
    "CenterCropPad": (1,),
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "GRU": (4,),
    "LSTM": (4,),
    "MaxUnpool": (2,),
    "OneHot": (1,),
    "Pad": (1, 3),
    "RNN": (4,),
    "Range": (0, 1, 2),
    "ReduceL1": (1,),
    "ReduceL2": (1,),
    "ReduceLogSum": (1,),
    "ReduceLogSumExp": (1,),
    "ReduceMax": (1,),
    "ReduceMean": (1,),
    "ReduceMin": (1,),
    "ReduceProd": (1,),
    "ReduceSum": (1,),
    "ReduceSumSquare": (1,),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "Tile": (1,),
    "TopK": (1,),
    "Unsqueeze": (1,),
    "Upsample": (1,),
}
"""Operators whose outputs are as large, or whose loops as long, as the values of these inputs say."""

_OPS: Final = {name.encode(): deciding for name, deciding in (dict.fromkeys(_PLAIN, ()) | _BY_INPUT).items()}
"""By name: the inputs whose values decide how much work it is.

A list of what is known to be even, and not of what is not: what a later ONNX adds is left to threads. Not in it, on
purpose: control flow (If, Loop, Scan), what gives as much as it finds (Compress, NonZero, NonMaxSuppression, Unique),
regions (RoiAlign, MaxRoiPool), texts (StringNormalizer, TfIdfVectorizer, ...), sequences and maps, signals."""
